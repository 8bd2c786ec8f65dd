"""Text encoders of the three families, in their real sizes and in tiny ones."""

from __future__ import annotations

from typing import Any

# Every CLIP vocabulary here ends its prompts with id 2, as the toy tokenizer does.
_CLIP_IDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}


def clip(
    hidden: int, layers: int, *, heads: int | None = None, vocabulary: int = 1000, **more: Any
) -> Any:
    """A ``CLIPTextModel``; heads of 64 channels unless told."""
    from transformers import CLIPTextModel

    return CLIPTextModel(_clip_config(hidden, layers, heads, vocabulary, **more))


def clip_with_projection(
    hidden: int, layers: int, *, heads: int | None = None, vocabulary: int = 1000, **more: Any
) -> Any:
    """A ``CLIPTextModelWithProjection`` projecting to ``hidden`` channels."""
    from transformers import CLIPTextModelWithProjection

    config = _clip_config(hidden, layers, heads, vocabulary, projection_dim=hidden, **more)
    return CLIPTextModelWithProjection(config)


def clip_large() -> Any:
    """CLIP ViT-L/14's text encoder: 123 M parameters (SD1.5, SDXL, FLUX)."""
    return clip(768, 12, vocabulary=49408, hidden_act="quick_gelu", projection_dim=768)


def clip_big_g() -> Any:
    """OpenCLIP ViT-bigG/14's text encoder: 695 M parameters (SDXL)."""
    return clip_with_projection(1280, 32, vocabulary=49408, hidden_act="gelu")


def t5(width: int, layers: int, *, heads: int, inner: int, vocabulary: int = 64) -> Any:
    """A T5 v1.1 encoder: gated GELU of ``inner`` channels, heads of 64."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            d_model=width,
            d_ff=inner,
            d_kv=64,
            num_layers=layers,
            num_heads=heads,
            vocab_size=vocabulary,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def t5_xxl() -> Any:
    """The T5 v1.1 XXL encoder: 4.76 G parameters (FLUX)."""
    return t5(4096, 24, heads=64, inner=10240, vocabulary=32128)


def _clip_config(hidden: int, layers: int, heads: int | None, vocabulary: int, **more: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=heads or hidden // 64,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        **_CLIP_IDS,
        **more,
    )

"""FLUX.1: CLIP and T5 text encoders, a transformer over packed latents, flow matching."""

from __future__ import annotations

from typing import Any

from . import text, vae
from .tokenizers import clip_tokenizer, t5_tokenizer
from .weights import Maker

_VAE: dict[str, Any] = {
    "latents": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def tiny(maker: Maker) -> Any:
    """38 MiB in half precision, made for 128 x 128 pixels."""
    return _pipeline(
        maker.make(lambda: text.clip(256, 3)),
        maker.make(lambda: text.t5(256, 4, heads=4, inner=512)),
        maker.make(
            lambda: _transformer(
                num_layers=2,
                num_single_layers=4,
                attention_head_dim=64,
                num_attention_heads=4,
                joint_attention_dim=256,
                pooled_projection_dim=256,
                axes_dims_rope=(16, 24, 24),
            )
        ),
        maker.make(lambda: vae.tiny(force_upcast=False, **_VAE)),
    )


def full(maker: Maker) -> Any:
    """FLUX.1-dev: transformer 11.9 G, T5 4.76 G, CLIP 123 M, VAE 84 M parameters."""
    return _pipeline(
        maker.make(text.clip_large),
        maker.make(text.t5_xxl),
        maker.make(
            lambda: _transformer(
                num_layers=19,
                num_single_layers=38,
                attention_head_dim=128,
                num_attention_heads=24,
                joint_attention_dim=4096,
                pooled_projection_dim=768,
                axes_dims_rope=(16, 56, 56),
            )
        ),
        maker.make(lambda: vae.full(**_VAE)),
    )


def _transformer(**config: Any) -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(patch_size=1, in_channels=64, guidance_embeds=True, **config)


def _pipeline(clip: Any, t5: Any, transformer: Any, autoencoder: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=autoencoder,
        text_encoder=clip,
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )

"""Models of published measurements, without weights, and the traces of their calls.

Configurations are those of the published checkpoints. ``synthetic`` has SD1.5, SDXL and FLUX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..planner.trace import Trace
from ..planner.work import Work
from ..tracing import fake_copy, fake_mode, on_meta, record
from .diffusers_calls import Shapes, call_of, decode_of
from .synthetic import text, vae


def _sd3() -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=192,
    )


def _pixart() -> Any:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        sample_size=128,
        num_layers=28,
        attention_head_dim=72,
        in_channels=4,
        out_channels=8,
        patch_size=2,
        cross_attention_dim=1152,
        num_attention_heads=16,
        caption_channels=4096,
        interpolation_scale=2,
        use_additional_conditions=False,
    )


def _qwen_vae() -> Any:
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage()


MODELS: dict[str, Callable[[], Any]] = {
    "sd3": _sd3,
    "pixart": _pixart,
    "qwen vae": _qwen_vae,
    "vae": vae.full,
    "vae 16": lambda: vae.full(latents=16, use_quant_conv=False, use_post_quant_conv=False),
    "clip": text.clip_large,
    "clip g": text.clip_big_g,
    "t5": text.t5_xxl,
}


def traced(model: str, work: Work, dtype: str = "float16") -> Trace:
    """The trace of one call of a published model: an autoencoder decodes.

    In float16 T5 keeps the last matrix of every feed-forward layer in float32, as transformers
    loads it.
    """
    kind = getattr(torch, dtype)
    with on_meta():
        module = MODELS[model]()
    module.to(kind)

    def dtype_of(name: str, _: torch.Tensor) -> torch.dtype | None:
        wide = model == "t5" and kind is torch.float16 and ".wo." in name
        return torch.float32 if wide else None

    mode = fake_mode()
    twin: Any = fake_copy(module, mode, dtype_of)
    shapes = Shapes(work)
    with mode:
        if hasattr(twin, "decode"):
            call = decode_of(twin, shapes, kind)
        else:
            call = call_of(twin, shapes, kind, hidden_states=True)
    return record(twin, call.run, mode, [call.inputs])

"""Three small model families that ComfyUI's loaders take for SD1.5, SDXL and FLUX.

What detection reads must be as in the real models (320 channels, the widths of the contexts,
SDXL's vector of 2816, FLUX's names); all else is as small as it goes. Imported by the builder and
by the worker, so it knows neither torch nor ComfyUI.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 1024
"""Tokens of the text encoders: with all 49408 one embedding would outweigh the UNet."""

_L = {"num_hidden_layers": 3, "intermediate_size": 768}
_G = {"num_hidden_layers": 3, "intermediate_size": 640}

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
}

KL = {
    "double_z": True,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}


@dataclass(frozen=True)
class Shape:
    """One family: what its diffusion model, its text encoders and its VAE are made with.

    Attributes:
        encoders: overrides of ComfyUI's text encoder configurations; none = no text encoder.
        vae: ``ddconfig`` of an AutoencoderKL, or ``None`` for a TAESD.
        cfg: guidance of a run; 1 runs the model on the positive prompt alone.
    """

    name: str
    storage: str
    channels: int
    cfg: float
    model: dict[str, Any]
    vae: dict[str, Any] | None = None
    encoders: dict[str, dict[str, Any]] = field(default_factory=dict)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "sd15",
            "float16",
            channels=4,
            cfg=4.0,
            model={
                **UNET,
                "channel_mult": [1],
                "num_res_blocks": [1],
                "transformer_depth": [1],
                "transformer_depth_output": [1, 1],
                "transformer_depth_middle": 1,
                "num_heads": 8,
                "num_head_channels": -1,
                "context_dim": 768,
                "use_linear_in_transformer": False,
            },
            encoders={"clip_l_model_config": {**_L, "num_hidden_layers": 2}},
        ),
        Shape(
            "sdxl",
            "float16",
            channels=4,
            cfg=4.0,
            # The depths are those of KOALA, SDXL's smallest kin.
            model={
                **UNET,
                "channel_mult": [1, 1, 1],
                "num_res_blocks": [1, 1, 1],
                "transformer_depth": [0, 2, 5],
                "transformer_depth_output": [0, 0, 0, 1, 0, 1],
                "transformer_depth_middle": 1,
                "num_heads": -1,
                "num_head_channels": 64,
                "context_dim": 2048,
                "use_linear_in_transformer": True,
                "num_classes": "sequential",
                "adm_in_channels": 2816,
            },
            vae={**KL, "z_channels": 4},
            encoders={"clip_l_model_config": _L, "clip_g_model_config": _G},
        ),
        Shape(
            "flux",
            "bfloat16",
            channels=16,
            cfg=1.0,
            model={
                "image_model": "flux",
                "in_channels": 16,
                "out_channels": 16,
                "patch_size": 2,
                "vec_in_dim": 768,
                "context_in_dim": 1024,
                "hidden_size": 384,
                "num_heads": 3,
                "mlp_ratio": 4.0,
                "depth": 3,
                "depth_single_blocks": 6,
                "axes_dim": [16, 56, 56],
                "theta": 10000,
                "qkv_bias": True,
                "guidance_embed": True,
            },
            vae={**KL, "z_channels": 16},
        ),
    )
}

LORAS = 5
"""LoRA files of each family, each of another kind; see the builder."""

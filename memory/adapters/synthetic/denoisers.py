"""Denoisers alone, of the families' shapes with fewer and narrower blocks, and an input for each.

They are wide enough for weights of the size that checkpoints have (about 0.01 to 0.06, by the
fan-in), which is what a storage type is judged by, and small enough for a minute of one CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import flux, sd15, sdxl
from .weights import Maker

Denoiser = tuple[torch.nn.Module, dict[str, Any]]

_EDGE = 16
_WORDS = 24


def _sd15(maker: Maker) -> Denoiser:
    unet = maker.make(
        lambda: sd15._unet(
            sample_size=_EDGE,
            block_out_channels=(320, 640),
            layers_per_block=1,
            cross_attention_dim=768,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    )
    return unet, {
        "sample": torch.randn(1, 4, _EDGE, _EDGE),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(1, _WORDS, 768),
    }


def _sdxl(maker: Maker) -> Denoiser:
    unet = maker.make(
        lambda: sdxl._unet(
            sample_size=_EDGE,
            block_out_channels=(160, 320, 640),
            layers_per_block=1,
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=1024,
            projection_class_embeddings_input_dim=sdxl._TIME_IDS + 640,
        )
    )
    return unet, {
        "sample": torch.randn(1, 4, _EDGE, _EDGE),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(1, _WORDS, 1024),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(1, 640),
            "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]]),
        },
    }


def _flux(maker: Maker) -> Denoiser:
    transformer = maker.make(
        lambda: flux._transformer(
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=128,
            num_attention_heads=8,
            joint_attention_dim=1024,
            pooled_projection_dim=768,
            axes_dims_rope=(16, 56, 56),
        )
    )
    places = torch.cartesian_prod(torch.arange(8), torch.arange(8)).float()
    return transformer, {
        "hidden_states": torch.randn(1, 64, 64),
        "encoder_hidden_states": torch.randn(1, _WORDS, 1024),
        "pooled_projections": torch.randn(1, 768),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "img_ids": torch.cat([torch.zeros(64, 1), places], dim=1),
        "txt_ids": torch.zeros(_WORDS, 3),
    }


DENOISERS: dict[str, Callable[[Maker], Denoiser]] = {"sd15": _sd15, "sdxl": _sdxl, "flux": _flux}


def build_denoiser(family: str, dtype: torch.dtype = torch.float16, seed: int = 0) -> Denoiser:
    """A denoiser of ``family`` (a key of ``DENOISERS``) and keyword arguments for its forward.

    The same for the same arguments; weights in ``dtype`` on the CPU, inputs in float32.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DENOISERS[family](Maker(dtype, seed))

"""LoRA weights for a synthetic pipeline, in the format ``load_lora_weights`` takes."""

from __future__ import annotations

import re
from typing import Any

import torch

from ...errors import TargetError

_DENOISER = re.compile(r"attn\d?\.(to_q|to_k|to_v|to_out\.0)$")


def lora_state_dict(pipe: Any, rank: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """A LoRA over every attention projection of the pipeline's denoiser.

    Keys are ``unet.<module>.lora_A.weight`` (or ``transformer.``) and ``lora_B``, without alphas,
    so the scale is 1. Both factors are random: the image changes visibly.

    Args:
        rank: inner dimension, at least 1.

    Raises:
        TargetError: the pipeline has neither a UNet nor a transformer.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for prefix in ("unet", "transformer"):
        denoiser = getattr(pipe, prefix, None)
        if denoiser is None:
            continue
        for name, module in denoiser.named_modules():
            if isinstance(module, torch.nn.Linear) and _DENOISER.search(name):
                down = torch.randn(rank, module.in_features, generator=generator)
                up = torch.randn(module.out_features, rank, generator=generator)
                dtype = module.weight.dtype
                key = f"{prefix}.{name}"
                state[f"{key}.lora_A.weight"] = (down * module.in_features**-0.5).to(dtype)
                state[f"{key}.lora_B.weight"] = (up * rank**-0.5).to(dtype)
    if not state:
        raise TargetError(
            f"{type(pipe).__name__} has no attention projections in a unet or transformer; "
            "hand in a diffusers image pipeline"
        )
    return state

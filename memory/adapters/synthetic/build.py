"""Synthetic pipelines by name: real diffusers classes, random seeded weights, no download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...errors import ConfigError
from . import flux, sd15, sdxl
from .weights import Maker, weight_bytes

_FAMILIES: dict[str, Callable[[Maker], Any]] = {
    "tiny-sd15": sd15.tiny,
    "tiny-sdxl": sdxl.tiny,
    "tiny-flux": flux.tiny,
    "sd15": sd15.full,
    "sdxl": sdxl.full,
    "flux": flux.full,
}
SDXL_SMALL = "sdxl-small"
NAMES = (*_FAMILIES, SDXL_SMALL)
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


def build(
    name: str,
    dtype: str | torch.dtype = "float16",
    seed: int = 0,
    *,
    on_meta: bool = False,
) -> Any:
    """A diffusers pipeline on the CPU with random weights, the same for the same arguments.

    Args:
        name: one of ``NAMES``: ``tiny-*`` for tests (128 x 128 pixels, under two seconds),
            ``sdxl-small`` (the pipeline the peers were measured on), or a real configuration.
        dtype: ``"float16"``, ``"bfloat16"``, ``"float32"`` or the torch dtype. On a plain CPU run
            float32: some processors take a hundred times longer over half precision.
        on_meta: weights without storage, to read sizes only.

    Raises:
        ConfigError: unknown name or dtype, or ``sdxl-small`` on the meta device.
    """
    precision = _dtype(dtype)
    if name == SDXL_SMALL:
        if on_meta:
            raise ConfigError(f"{name} has no meta form; build it with on_meta=False")
        pipe = sdxl.small(precision, seed)
    elif name in _FAMILIES:
        pipe = _FAMILIES[name](Maker(precision, seed, on_meta))
    else:
        raise ConfigError(f"no synthetic pipeline is called {name!r}; choose {', '.join(NAMES)}")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(
    pipe: Any,
    *,
    prompt: str = "a cat",
    negative: str = "bad",
    size: int = 128,
    steps: int = 2,
    guidance: float = 5.0,
    seed: int = 5,
    batch: int = 1,
    **more: Any,
) -> torch.Tensor:
    """One reproducible image run.

    Returns:
        Images as float32 on the CPU, shape (batch, 3, size, size), values 0..1.
    """
    arguments: dict[str, Any] = (
        {} if hasattr(pipe, "transformer") else {"negative_prompt": negative}
    )
    with torch.no_grad():
        images = pipe(
            prompt,
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=guidance,
            num_images_per_prompt=batch,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="pt",
            **arguments,
            **more,
        ).images
    return images.float().cpu()


def write_pipeline(
    folder: str | Path, name: str, seed: int = 0, dtype: str | torch.dtype = "float16"
) -> Path:
    """Save ``build(name)`` as a diffusers folder of safetensors files; returns the folder."""
    target = Path(folder)
    build(name, dtype, seed).save_pretrained(target, safe_serialization=True)
    return target


def component_bytes(pipe: Any) -> dict[str, int]:
    """Bytes of each component that has weights, by its name in the pipeline."""
    return {
        name: weight_bytes(part)
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
    }


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ConfigError(f"{dtype!r} is no dtype here; choose {', '.join(DTYPES)}")
    return DTYPES[dtype]

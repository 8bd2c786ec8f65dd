"""Which level keeps a pipeline under a budget: exact weights plus a stated estimate of the rest.

Weights are counted to the byte. Activations are estimated from the models' configurations, for
one image of the pipeline's default size unless told otherwise, with guidance (two samples):

* a UNet: 12 times the hidden state of its widest level, in every sample;
* a transformer over tokens: 16 hidden states of every token, one sample;
* a VAE: 3.5 times the last upsampling's map of the whole image, or of one tile; in exact strips
  what their layers take;
* text encoders: 8 hidden states of 512 tokens.

An estimate: 0.9 to 2.3 times what the pipelines it was tried on used. The monitor says what was
really used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..candidates import LADDER, levels_from
from ..errors import BudgetError
from ..levels import MemoryOptimizationConfig, OptimizationLevel
from ..stages import DECODING, DENOISING, stage_of
from ..units import format_bytes, givable
from . import exact_tiling
from .snapshot import tensors_of
from .vae_tiling import spatial_factor

__all__ = ["LADDER", "Need", "edge_of", "edge_of_area", "estimate", "fit"]

_DEFAULT_EDGE = 512


@dataclass(frozen=True)
class Need:
    """Estimated peak bytes of one configuration: weights held at once, and activations."""

    weights: int
    activations: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.weights + self.activations


def fit(
    config: MemoryOptimizationConfig,
    pipe: Any,
    parts: Mapping[str, torch.nn.Module],
    *,
    edge: int | None = None,
    images: int = 1,
) -> tuple[MemoryOptimizationConfig, str | None]:
    """The gentlest configuration from ``config.level`` on whose estimated need fits its budget.

    A level asked for by name is never weakened; AUTO and FASTEST start at NONE. Settings changed by
    hand are carried over to the chosen level. ``edge`` is the image's in pixels (``None`` = the
    pipeline's default), ``images`` how many are made at once. Returns the configuration and a
    sentence saying why.

    Raises:
        BudgetError: even ULTRA needs more; the message names the smallest budget.
    """
    budget = config.budget_bytes
    if budget is None:
        return config, None
    smallest: tuple[int, OptimizationLevel] | None = None
    for candidate in levels_from(config):
        level = candidate.level
        need = estimate(candidate, pipe, parts, edge=edge, images=images)
        if need.total <= budget:
            return candidate, (
                f"budget {format_bytes(budget)}: level {level.value}, estimated to need "
                f"{format_bytes(need.total)} ({format_bytes(need.weights)} weights, "
                f"{format_bytes(need.activations)} activations)"
            )
        if smallest is None or need.total < smallest[0]:
            smallest = need.total, level
    assert smallest is not None
    size = f"{edge_of(pipe, parts) if edge is None else edge} pixels"
    if images > 1:
        size += f" and {images} images at once"
    raise BudgetError(
        f"a budget of {format_bytes(budget)} does not hold this pipeline: {smallest[1].value} is "
        f"estimated to need {format_bytes(smallest[0])} at {size}; give "
        f"{format_bytes(givable(smallest[0]))} or more, or leave the budget out"
    )


def estimate(
    config: MemoryOptimizationConfig,
    pipe: Any,
    parts: Mapping[str, torch.nn.Module],
    *,
    edge: int | None = None,
    images: int = 1,
) -> Need:
    """The largest need of any component's turn under ``config``; ``edge``, ``images`` as in fit."""
    if edge is None:
        edge = edge_of(pipe, parts)
    whole = sum(_size(part) for part in parts.values())
    needs: list[Need] = []
    for name, part in parts.items():
        stage = stage_of(name)
        if config.cpu_mode and stage != DENOISING:
            continue
        activations = _activations(config, stage, part, edge, images)
        if config.offload == "none":
            on_device = [p for n, p in parts.items() if stage_of(n) == DENOISING]
            weights = sum(_size(p) for p in on_device) if config.cpu_mode else whole
            weights -= _fp8_saving(config, parts)
        elif config.offload == "component":
            weights = _size(part) - _fp8_saving(config, {name: part})
        elif config.offload == "group" and config.group_offload_type == "block_level":
            weights = 2 * _largest_block(part)
        else:
            weights = 2 * _largest_leaf(part)
        needs.append(Need(weights, activations))
    return max(needs, key=lambda need: need.total, default=Need(0, 0))


def edge_of(pipe: Any, parts: Mapping[str, torch.nn.Module]) -> int:
    """The pipeline's default image edge in pixels."""
    sample = getattr(pipe, "default_sample_size", None)
    factor = getattr(pipe, "vae_scale_factor", None)
    if isinstance(sample, int) and isinstance(factor, int):
        return sample * factor
    for name, part in parts.items():
        size = getattr(getattr(part, "config", None), "sample_size", None)
        if stage_of(name) == DENOISING and isinstance(size, int):
            return size * (factor if isinstance(factor, int) else 8)
    return _DEFAULT_EDGE


def edge_of_area(width: int, height: int) -> int:
    """The edge in pixels of a square image of the same area."""
    return math.isqrt(width * height - 1) + 1


def _activations(
    config: MemoryOptimizationConfig,
    stage: str | None,
    part: torch.nn.Module,
    edge: int,
    images: int,
) -> int:
    settings: Any = getattr(part, "config", None)
    width = next((p.itemsize for p in part.parameters() if p.itemsize > 1), 4)
    blocks = getattr(settings, "block_out_channels", None)
    if stage == DECODING:
        if getattr(settings, "force_upcast", False):
            width = 4
        tile = min(edge, config.tile_for(edge, edge)) if config.enable_vae_tiling else edge
        if tile < edge and exact_tiling.wanted(config):
            decoder = getattr(part, "decoder", None)
            strips = exact_tiling.planned(decoder, 1, edge, edge, width, tile)
            if strips is not None and exact_tiling.known(part):
                return strips.peak * _at_once(config, images)
        edge = tile
        channels = (blocks[1] if len(blocks) > 1 else blocks[0]) if blocks else 256
        return int(3.5 * edge * edge * channels * width) * _at_once(config, images)
    factor = spatial_factor(part) if stage == DECODING else 8
    if stage == DENOISING and blocks:
        latent = edge // (factor or 8)
        return 12 * 2 * latent * latent * max(blocks[:2]) * width * images
    hidden = _hidden(settings)
    tokens = (edge // 16) ** 2 + 512 if stage == DENOISING else 512
    return (16 * images if stage == DENOISING else 8) * tokens * hidden * width


def _at_once(config: MemoryOptimizationConfig, images: int) -> int:
    """Images the VAE works on at once."""
    if not config.enable_vae_slicing:
        return images
    return min(images, config.vae_decode_chunk_size or 1)


def _hidden(settings: Any) -> int:
    heads = getattr(settings, "num_attention_heads", None)
    head = getattr(settings, "attention_head_dim", None)
    if isinstance(heads, int) and isinstance(head, int):
        return heads * head
    for name in ("hidden_size", "d_model", "dim"):
        value = getattr(settings, name, None)
        if isinstance(value, int):
            return value
    return 1024


def _size(part: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(part))


def _fp8_saving(config: MemoryOptimizationConfig, parts: Mapping[str, torch.nn.Module]) -> int:
    if not config.fp8_storage:
        return 0
    saving = 0
    for name, part in parts.items():
        if stage_of(name) == DENOISING:
            saving += sum(
                p.nbytes - p.numel() for p in part.parameters() if p.ndim >= 2 and p.itemsize > 1
            )
    return saving


def _largest_leaf(part: torch.nn.Module) -> int:
    return max((_own(module) for module in part.modules()), default=0)


def _own(module: torch.nn.Module) -> int:
    tensors = (*module._parameters.values(), *module._buffers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _largest_block(part: torch.nn.Module) -> int:
    blocks = [
        _size(child)
        for module in part.modules()
        if isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential))
        for child in module
    ]
    return max(blocks, default=_size(part))

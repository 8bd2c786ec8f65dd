"""Exact VAE tiling: the untiled image, at about the memory of one tile.

Blended tiles change the image, because each sees its own normalisation statistics and its own
attention. Here the image goes through the autoencoder layer by layer, strip by strip, with the
rows each convolution needs beyond its strip, statistics over the whole map and attention over all
of it. Between the layers the map waits in host memory, so that it is moved twice a layer.

For the image autoencoders whose layers ``exact_program`` knows; others are tiled by blending.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..backend import allocated, device_of
from ..levels import MemoryOptimizationConfig, OptimizationLevel
from .base import Applied, Method, Outcome, Skipped, Undo, override, undo_all, wrap_method
from .exact_costs import Plan, Shape, layers_of, plan, scale_of, whole
from .exact_map import Workshop
from .exact_passes import run
from .exact_program import Step, program_of

logger = logging.getLogger("lowtide")

NAME = "exact vae tiling"
HOST = torch.device("cpu")


@dataclass(frozen=True)
class ExactTiling:
    """``edge(height, width)``: the tile in pixels whose memory is not to be exceeded.

    Attributes:
        budget: the most bytes allocated on the device: strips grow lower under it, and maps lie on
            the device as far as it leaves room. ``None``: all maps wait in host memory.
    """

    edge: Callable[[int, int], int]
    budget: int | None = None


def known(vae: Any) -> bool:
    """Whether every layer of the VAE's encoder and decoder is known."""
    parts = [getattr(vae, name, None) for name in ("encoder", "decoder")]
    return all(program_of(part) is not None for part in parts)


def wanted(config: MemoryOptimizationConfig) -> bool:
    """Whether a pipeline's VAE is to be tiled exactly under ``config``, if its layers are known.

    Strips move the maps between layers; at ULTRA, where weights are streamed, that counts most, and
    blended tiles are left unless exact ones are asked for.
    """
    if config.vae_tile_mode == "auto":
        return config.level is not OptimizationLevel.ULTRA
    return config.vae_tile_mode == "exact"


def apply(config: ExactTiling, vae: torch.nn.Module, name: str) -> Outcome:
    """Let ``vae.decoder`` and ``vae.encoder`` work in strips on images larger than a tile."""
    if not known(vae):
        return Skipped(NAME, name, "it has layers of other kinds than those known")
    undos: list[Undo] = []
    if hasattr(vae, "use_tiling"):
        undos.append(override(vae, "use_tiling", False))
    for part in ("decoder", "encoder"):
        module = getattr(vae, part)
        undos.append(wrap_method(module, "forward", _in_strips(module, _ByConfig(config, module))))
    staging = "in host memory" if config.budget is None else "where the budget leaves them room"
    detail = (
        f"in strips, at the memory of one tile; maps wait {staging}; the image stays what it is"
    )
    return Applied(NAME, name, detail, lambda: undo_all(reversed(undos)))


def planned(
    module: Any,
    images: int,
    height: int,
    width: int,
    itemsize: int,
    edge: int,
    limit: int | None = None,
    keep: int = 0,
) -> Plan | None:
    """The plan of an encoder's or decoder's strips; ``None`` if its layers are not all known.

    Args:
        height, width: of the images, in pixels.
        edge: of the tile whose memory is not to be exceeded, in pixels.
        limit, keep: as :func:`exact_costs.plan` takes them.
    """
    program = program_of(module)
    if program is None:
        return None
    shape = _shape(program, images, height, width)
    return plan(program, shape, itemsize, max(1, edge // _factor(program)), limit, keep)


def whole_bytes(module: Any, images: int, height: int, width: int, itemsize: int) -> int | None:
    """Bytes an encoder or a decoder takes for whole images; ``None`` as for :func:`planned`."""
    program = program_of(module)
    if program is None:
        return None
    return whole(program, _shape(program, images, height, width), itemsize)


@contextmanager
def strips(vae: Any, part: str, chosen: Plan) -> Iterator[None]:
    """For the length of a block ``vae.decoder`` or ``vae.encoder`` (``part``) works in strips."""
    module = getattr(vae, part)
    undo = wrap_method(module, "forward", _in_strips(module, _Settled(chosen)))
    try:
        yield
    finally:
        undo()


class _Settled:
    """A plan made beforehand."""

    def __init__(self, chosen: Plan) -> None:
        self._chosen = chosen

    def one_tile(self, _sample: torch.Tensor) -> bool:
        return False

    def plan(self, _program: tuple[Step, ...], _sample: torch.Tensor) -> Plan:
        return self._chosen


class _ByConfig:
    """A plan by the sample's size, and by what is free under the budget at that moment."""

    def __init__(self, config: ExactTiling, module: Any) -> None:
        program = program_of(module)
        assert program is not None
        self._config, self._module = config, module
        self._factor = _factor(program)

    def one_tile(self, sample: torch.Tensor) -> bool:
        """Whether the sample is no larger than a tile."""
        return max(sample.shape[-2:]) * self._factor <= self._edge(sample)

    def plan(self, program: tuple[Step, ...], sample: torch.Tensor) -> Plan:
        edge = max(1, self._edge(sample) // self._factor)
        limit = None
        if self._config.budget is not None:
            device = device_of(sample.device)
            held = allocated(device)
            if held is not None:
                arriving = _arriving(self._module, device)
                limit = max(0, self._config.budget - held - arriving)
        shape: Any = tuple(sample.shape)
        return plan(program, shape, sample.element_size(), edge, limit)

    def _edge(self, sample: torch.Tensor) -> int:
        height, width = (length * self._factor for length in sample.shape[-2:])
        return self._config.edge(height, width)


def _in_strips(module: Any, choice: _Settled | _ByConfig) -> Callable[[Method], Method]:
    """Around the forward of an encoder or a decoder."""

    def around(original: Method) -> Method:
        def forward(sample: Any, *args: Any, **kwargs: Any) -> Any:
            plain = isinstance(sample, torch.Tensor) and sample.ndim == 4
            given = [value for value in (*args, *kwargs.values()) if value is not None]
            if not plain or given or (torch.is_grad_enabled() and sample.requires_grad):
                return original(sample, *args, **kwargs)
            if choice.one_tile(sample):
                return original(sample, *args, **kwargs)
            # Read anew each time: adapters and hooks may have come since.
            program = program_of(module)
            if program is None:
                logger.warning(
                    "this VAE was changed after it was optimised, and works on the whole image; "
                    "optimise again to have it tiled"
                )
                return original(sample, *args, **kwargs)
            chosen = choice.plan(program, sample)
            shop = Workshop(sample.device, HOST, chosen.room, chosen.keep)
            with torch.no_grad():
                return run(program, sample, shop)

        return forward

    return around


def _factor(program: tuple[Step, ...]) -> int:
    """Pixels of the image per unit of the program's input: of a latent, or 1 for an encoder."""
    return max(1, round(scale_of(program)))


def _shape(program: tuple[Step, ...], images: int, height: int, width: int) -> Shape:
    factor = _factor(program)
    channels = next(layers_of(program)).conv.in_channels
    return images, channels, height // factor, width // factor


def _arriving(module: Any, device: torch.device) -> int:
    """Bytes of weights that hooks may bring beside the strips: two layers', one of them ahead."""
    away = [
        sum(weight.nbytes for weight in part.parameters(recurse=False))
        for part in module.modules()
        if any(weight.device != device for weight in part.parameters(recurse=False))
    ]
    return sum(sorted(away)[-2:])

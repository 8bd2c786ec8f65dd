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

from .base import Applied, Method, Outcome, Skipped, Undo, override, undo_all, wrap_method
from .exact_map import Workshop
from .exact_passes import room_for, run
from .exact_program import program_of
from .vae_tiling import spatial_factor

logger = logging.getLogger("lowtide")

NAME = "exact vae tiling"
HOST = torch.device("cpu")


@dataclass(frozen=True)
class ExactTiling:
    """``edge(height, width)``: the tile in pixels whose memory is not to be exceeded.

    ``device`` is where strips are computed; ``None`` = where the input is. Maps wait on ``stage``.
    """

    edge: Callable[[int, int], int]
    device: torch.device | None = None
    stage: torch.device = HOST


def known(vae: Any) -> bool:
    """Whether every layer of the VAE's encoder and decoder is known."""
    parts = [getattr(vae, name, None) for name in ("encoder", "decoder")]
    return all(program_of(part) is not None for part in parts)


def apply(config: ExactTiling, vae: torch.nn.Module, name: str) -> Outcome:
    """Let ``vae.decoder`` and ``vae.encoder`` work in strips on images larger than a tile."""
    factor = spatial_factor(vae)
    if factor is None or not known(vae):
        return Skipped(NAME, name, "it has layers of other kinds than those known")
    undos: list[Undo] = []
    if hasattr(vae, "use_tiling"):
        undos.append(override(vae, "use_tiling", False))
    for part, scale in (("decoder", factor), ("encoder", 1)):
        module = getattr(vae, part)
        undos.append(wrap_method(module, "forward", _in_strips(config, module, scale)))
    detail = "in strips, at the memory of one tile; the image stays what it is"
    return Applied(NAME, name, detail, lambda: undo_all(reversed(undos)))


@contextmanager
def strips(vae: Any, part: str, edge: int, factor: int) -> Iterator[None]:
    """For the length of a block ``vae.decoder`` or ``vae.encoder`` (``part``) works in strips.

    Args:
        edge: of the tile whose memory is not to be exceeded, in pixels.
        factor: pixels per unit of the part's input: of a latent, or 1.
    """
    module = getattr(vae, part)
    config = ExactTiling(lambda _height, _width: edge)
    undo = wrap_method(module, "forward", _in_strips(config, module, factor))
    try:
        yield
    finally:
        undo()


def _in_strips(config: ExactTiling, module: Any, factor: int) -> Callable[[Method], Method]:
    """Around the forward of an encoder (``factor`` 1) or a decoder (pixels per latent)."""

    def around(original: Method) -> Method:
        def forward(sample: Any, *args: Any, **kwargs: Any) -> Any:
            plain = isinstance(sample, torch.Tensor) and sample.ndim == 4
            given = [value for value in (*args, *kwargs.values()) if value is not None]
            if not plain or given or (torch.is_grad_enabled() and sample.requires_grad):
                return original(sample, *args, **kwargs)
            height, width = (length * factor for length in sample.shape[-2:])
            edge = config.edge(height, width)
            if max(height, width) <= edge:
                return original(sample, *args, **kwargs)
            # Read anew each time: adapters and hooks may have come since.
            program = program_of(module)
            if program is None:
                logger.warning(
                    "this VAE was changed after it was optimised, and works on the whole image; "
                    "optimise again to have it tiled"
                )
                return original(sample, *args, **kwargs)
            room = room_for(program, (edge // factor) ** 2, sample.element_size())
            shop = Workshop(config.device or sample.device, config.stage, room)
            with torch.no_grad():
                return run(program, sample.to(shop.device), shop)

        return forward

    return around

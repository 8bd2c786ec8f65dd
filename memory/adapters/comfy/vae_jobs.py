"""What one decode or encode of a VAE is to be: whole, in blended tiles, or in exact strips.

The choice follows the image's size, the configuration, and the room there is: smaller tiles and
lower strips where a budget or the device's free memory is short, maps on the device where they fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ...levels import MemoryOptimizationConfig, OptimizationLevel
from ...strategies.exact_costs import Plan
from ...strategies.exact_tiling import known, planned, whole_bytes
from ...units import format_bytes
from .tile import Tile, clamped
from .vae_room import Room

FRAMES = 64
"""Frames of video in one tile, and shared by neighbours: the core's own defaults."""
FRAMES_SHARED = 8
_LATENTS = 16
"""Smallest tile edge chosen by itself, in latents. The core also cuts tiles of images half as wide;
narrower ones than eight latents show their seams."""
_LATENTS_OF_VIDEO = 8
_TINY = 320
"""Values a tiny autoencoder (TAESD) holds at once per pixel: five maps of 64 channels."""
_HALF = 0.45
"""Part of the whole image's memory that a gentle level uses, to move fewer bytes."""


@dataclass(frozen=True)
class Job:
    """One decode or encode; ``need`` is what it takes on the device beside the weights, in bytes.

    ``tile`` is of blended tiles, ``strips`` of exact ones; without either the image goes whole.
    """

    need: int
    tile: Tile | None = None
    strips: Plan | None = None

    def text(self) -> str:
        """How the work is cut, for a person."""
        if self.strips is not None:
            room = format_bytes(self.strips.strips)
            return f"exact, in strips of {room}, maps {self.strips.staging}"
        if self.tile is None:
            return "whole"
        frames = "" if self.tile.frames is None else f" and {self.tile.frames} frames"
        return f"blended tiles of {self.tile.edge}{frames}, {self.tile.overlap} shared"


def choose(vae: Any, work: str, shape: tuple[int, ...], room: Room) -> Job:
    """The job for a sample.

    Args:
        work: decode or encode.
        shape: of the latent, or of the pixels with their channels first, as the VAE's own estimate
            takes it.
    """
    plan = vae.lowtide_plan
    config: MemoryOptimizationConfig | None = plan.config
    estimate = vae.lowtide_estimates[work]
    if config is None or not tiles(vae):
        return Job(int(estimate(shape, vae.vae_dtype)))
    factor = factor_of(vae, work)
    height, width = (int(length) * (factor if work == "decode" else 1) for length in shape[-2:])
    if plan.exact and known(vae.first_stage_model):
        images = shape[0] if plan.chunk is None else min(shape[0], plan.chunk)
        return _strips(vae, work, config, (images, height, width), room)
    chosen_by_hand = config.vae_tile_size is not None or config.vae_tile_mode != "auto"
    if is_tiny(vae) and not chosen_by_hand:
        need = height * width * shape[0] * _TINY * vae.vae_dtype.itemsize
        if vae.latent_dim == 3:
            need = int(estimate(shape, vae.vae_dtype))
        if room.most is None or need <= room.most:
            return Job(need)
    return _blended(vae, work, config, shape, (height, width), room)


def _strips(
    vae: Any,
    work: str,
    config: MemoryOptimizationConfig,
    size: tuple[int, int, int],
    room: Room,
) -> Job:
    module = getattr(vae.first_stage_model, f"{work}r")
    itemsize = vae.vae_dtype.itemsize
    edge = _edge(vae, work, config, *size[1:])
    untiled = whole_bytes(module, *size, itemsize)
    lean = planned(module, *size, itemsize, edge, room.most)
    assert untiled is not None and lean is not None
    if max(size[1:]) <= edge and (room.most is None or untiled <= room.most):
        return Job(untiled)
    allowed = None
    if vae.lowtide_plan.budget is None:
        allowed = max(0, int(_HALF * untiled) - lean.strips) if gentle(config) else 0
    found = replace(lean, keep=room.staging(lean.strips, allowed))
    return Job(found.peak, strips=found)


def _blended(
    vae: Any,
    work: str,
    config: MemoryOptimizationConfig,
    shape: tuple[int, ...],
    size: tuple[int, int],
    room: Room,
) -> Job:
    def need(tile: Tile | None) -> int:
        return int(vae.lowtide_estimates[work](clamped(shape, tile), vae.vae_dtype))

    unit = factor_of(vae, work) if work == "decode" else 1
    found = None
    for found in _candidates(vae, work, config, size):
        if room.most is None or need(found) <= room.most:
            break
    assert found is not None
    uncut = max(size) <= found.edge * unit
    if uncut and (len(shape) < 5 or room.most is None or need(None) <= room.most):
        return Job(need(None))
    return Job(need(found), found)


def _candidates(
    vae: Any, work: str, config: MemoryOptimizationConfig, size: tuple[int, int]
) -> Iterator[Tile]:
    """Tiles from the largest allowed to the smallest; one, where its size was set by hand."""
    edge = _edge(vae, work, config, *size)
    make = _decoded_tile(vae, config) if work == "decode" else _encoded_tile(vae, config)
    factor = factor_of(vae, work)
    yield make(edge)
    if config.vae_tile_size is not None:
        return
    least = least_edge(vae, factor)
    while edge > least:
        edge = max(least, edge // 2 // factor * factor)
        yield make(edge)
    per_latent = vae.temporal_compression_decode()
    if per_latent is not None:
        yield from make(edge).shorter(2 if work == "decode" else 2 * per_latent)


def _edge(vae: Any, work: str, config: MemoryOptimizationConfig, height: int, width: int) -> int:
    factor = factor_of(vae, work)
    edge = config.tile_for(height, width)
    if config.vae_tile_size is None:
        edge = max(edge, least_edge(vae, factor))
    return edge // factor * factor


def least_edge(vae: Any, factor: int) -> int:
    """The smallest tile edge chosen by itself, in pixels."""
    return (_LATENTS_OF_VIDEO if vae.latent_dim == 3 else _LATENTS) * factor


def _decoded_tile(vae: Any, config: MemoryOptimizationConfig) -> Callable[[int], Tile]:
    factor = factor_of(vae, "decode")
    frames = shared = None
    per_latent = vae.temporal_compression_decode()
    if per_latent is not None:
        frames = max(2, FRAMES // per_latent)
        shared = max(1, min(frames // 2, FRAMES_SHARED // per_latent))

    def tile(edge: int) -> Tile:
        latents = edge // factor
        return Tile(latents, _overlap(config, latents), frames, shared)

    return tile


def _encoded_tile(vae: Any, config: MemoryOptimizationConfig) -> Callable[[int], Tile]:
    factor = factor_of(vae, "encode")

    def tile(edge: int) -> Tile:
        return Tile(edge, _overlap(config, edge // factor) * factor, FRAMES, FRAMES_SHARED)

    return tile


def _overlap(config: MemoryOptimizationConfig, latents: int) -> int:
    """Latents shared by neighbours. The core also cuts tiles half as wide and twice as high,
    and those must stay wider than what they share."""
    return int(min(round(latents * config.vae_tile_overlap), latents // 4))


def gentle(config: MemoryOptimizationConfig) -> bool:
    """Whether half of the whole image's memory will do, so that maps stay on the device."""
    return config.level in (OptimizationLevel.NONE, OptimizationLevel.BALANCED)


def factor_of(vae: Any, work: str) -> int:
    """Pixels of an edge per latent."""
    asked = vae.spacial_compression_decode if work == "decode" else vae.spacial_compression_encode
    return int(asked())


def tiles(vae: Any) -> bool:
    """Whether the VAE has an area to tile: images and video, not sound."""
    return vae.latent_dim in (2, 3) and getattr(vae, "extra_1d_channel", None) is None


def tiles_itself(vae: Any) -> bool:
    """Whether the VAE cuts its own tiles; the core hands it ours, which it may follow or not."""
    return bool(getattr(vae, "handles_tiling", False))


def is_tiny(vae: Any) -> bool:
    """Whether it is one of the tiny autoencoders, which take a tenth of the others' memory."""
    return type(vae.first_stage_model).__module__.startswith("comfy.taesd.")

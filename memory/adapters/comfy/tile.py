"""One tile of a VAE's work, as the core's tiled methods take it, and the shapes estimates get."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Tile:
    """A tile's edge and overlap, in what the core's method counts: latents or pixels.

    ``high`` is its height where that is another than ``edge``.
    """

    edge: int
    overlap: int
    frames: int | None = None
    frames_shared: int | None = None
    high: int | None = None

    def arguments(self) -> dict[str, int | None]:
        """All of them, always: without an overlap the core builds one from ``None``."""
        return {
            "tile_x": self.edge,
            "tile_y": self.edge if self.high is None else self.high,
            "overlap": self.overlap,
            "tile_t": self.frames,
            "overlap_t": self.frames_shared,
        }

    def shorter(self, least: int) -> Iterator[Tile]:
        """The same tile over ever fewer frames, by halves, down to ``least``."""
        tile = self
        while tile.frames is not None and tile.frames > least:
            frames = max(least, tile.frames // 2)
            shared = None if tile.frames_shared is None else min(tile.frames_shared, frames // 2)
            tile = replace(tile, frames=frames, frames_shared=shared)
            yield tile


def given(
    tile_x: int | None = None,
    tile_y: int | None = None,
    overlap: int | None = None,
    tile_t: int | None = None,
    overlap_t: int | None = None,
) -> Tile | None:
    """The tile a caller of the core's tiled methods asks for; ``None`` where it leaves it open."""
    if tile_x is None or tile_y is None:
        return None
    return Tile(tile_x, overlap or 0, tile_t, overlap_t, tile_y)


def channels_first(shape: Any) -> tuple[int, ...]:
    """The shape of pixels once the core has put their channels first."""
    return (shape[0], shape[-1], *shape[1:-1])


def pixels_shape(vae: Any, pixels: Any) -> tuple[int, ...]:
    """The shape of pixels as the VAE's estimate takes it: a video VAE's counts frames."""
    images, channels, *edges = channels_first(pixels.shape)
    if vae.latent_dim != 3 or len(edges) == 3:
        return (images, channels, *edges)
    if getattr(vae, "not_video", False):
        return (images, channels, 1, *edges)
    return (1, channels, images, *edges)


def clamped(shape: Any, tile: Tile | None) -> tuple[int, ...]:
    """The shape of one tile, for an estimate."""
    if tile is None:
        return tuple(shape)
    *rest, height, width = (int(length) for length in shape)
    if len(rest) == 3 and tile.frames is not None:
        rest[2] = min(rest[2], tile.frames)
    high = tile.edge if tile.high is None else tile.high
    return (*rest, min(height, high), min(width, tile.edge))

"""One tile of a VAE's work, as the core's tiled methods take it, and its shape for estimates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tile:
    """A tile's edge and overlap, in what the core's method counts: latents or pixels."""

    edge: int
    overlap: int
    frames: int | None = None
    frames_shared: int | None = None

    def arguments(self) -> dict[str, int | None]:
        """All of them, always: without an overlap the core builds one from ``None``."""
        return {
            "tile_x": self.edge,
            "tile_y": self.edge,
            "overlap": self.overlap,
            "tile_t": self.frames,
            "overlap_t": self.frames_shared,
        }


def channels_first(shape: Any) -> tuple[int, ...]:
    """The shape of pixels once the core has put their channels first."""
    return (shape[0], shape[-1], *shape[1:-1])


def clamped(shape: Any, tile: Tile | None) -> tuple[int, ...]:
    """The shape of one tile, for an estimate."""
    if tile is None:
        return tuple(shape)
    *rest, height, width = (int(length) for length in shape)
    if len(rest) == 3 and tile.frames is not None:
        rest[2] = min(rest[2], tile.frames)
    return (*rest, min(height, tile.edge), min(width, tile.edge))

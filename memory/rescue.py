"""The ladder of an out-of-memory rescue: what is tried, in which order, and what is no rescue.

Each rung changes less of the result than the one below it could: the first two and the last change
where weights lie and how much is computed at once; none stores weights in another type, so that
the image stays the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .levels import MemoryOptimizationConfig, OptimizationLevel

CHOICES = ("on", "off", "ask")
TRIES = 4
"""Most times one node is run again: once per rung."""


@dataclass(frozen=True)
class Rung:
    """One attempt: what is done before the node runs again.

    ``config`` is applied to the models the node is given; ``None`` leaves them as they are.
    """

    name: str
    does: str
    config: MemoryOptimizationConfig | None


def ladder() -> Iterator[Rung]:
    """The rungs in their order, at most :data:`TRIES`."""
    yield Rung("free", "takes off the device what this node does not use", None)
    tiles = {"enable_vae_tiling": True, "enable_vae_slicing": True, "vae_decode_chunk_size": 1}
    yield Rung("tile", "the VAE works in tiles", _config(OptimizationLevel.BALANCED, **tiles))
    yield Rung(
        "stream",
        "most of the model's weights are streamed",
        _config(OptimizationLevel.AGGRESSIVE),
    )
    yield Rung(
        "stream everything",
        "no weight stays on the device, attention and tiles are cut small",
        _config(
            OptimizationLevel.ULTRA,
            fp8_storage=False,
            attention="sliced",
            vae_tile_size=None,
        ),
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device ran out of memory; of the host, it does not count.

    torch raises ``OutOfMemoryError``; drivers and libraries raise ``RuntimeError`` with a text.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        said in str(error).lower()
        for said in ("out of memory", "cublas_status_alloc_failed", "alloc_failed")
    )


def _config(level: OptimizationLevel, **changes: object) -> MemoryOptimizationConfig:
    return MemoryOptimizationConfig.from_level(level, **{"cleanup": "off", **changes})

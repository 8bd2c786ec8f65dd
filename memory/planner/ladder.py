"""The fastest of several whole configurations that fits: for hosts that place weights by level."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..levels import MemoryOptimizationConfig, OptimizationLevel
from ..units import format_bytes
from .planner import Limits
from .predict import DECODE, Prediction, Turn, predict
from .schedule import Rates

LADDER = (
    OptimizationLevel.NONE,
    OptimizationLevel.BALANCED,
    OptimizationLevel.AGGRESSIVE,
    OptimizationLevel.ULTRA,
)
TILES = (512, 256, 128)
"""Edges in pixels tried at every level besides its own, where they are smaller."""

_ALIKE = 0.01


@dataclass(frozen=True)
class Rung:
    """A configuration, what its components would do, and what changes the level's own settings."""

    config: MemoryOptimizationConfig
    turns: Sequence[Turn]
    changes: dict[str, Any]


@dataclass(frozen=True)
class Climb:
    """The rung chosen and its prediction; without one, what would do."""

    rung: Rung | None
    prediction: Prediction | None
    smallest_budget: int
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = self.rung
        return {
            "fits": found is not None,
            "level": None if found is None else found.config.level.value,
            "changes": {} if found is None else found.changes,
            "smallest_budget_bytes": self.smallest_budget,
            "advice": list(self.advice),
            "prediction": None if self.prediction is None else self.prediction.to_dict(),
        }


def climb(
    levels: Iterable[Iterable[Rung]],
    limits: Limits,
    rates: Rates,
    *,
    workspace_factor: float = 1.0,
    context_bytes: int = 0,
) -> Climb:
    """The fastest rung within ``limits``; of those about as fast, the gentlest level.

    Args:
        levels: of each level its own settings first, then smaller and smaller tiles. Those are
            asked for only where the decode is what does not fit.
    """
    best: tuple[float, Rung, Prediction] | None = None
    least: tuple[int, Rung, Prediction] | None = None
    for rungs in levels:
        for rung in rungs:
            found = predict(
                rung.turns,
                rates=rates,
                workspace_factor=workspace_factor,
                context_bytes=context_bytes,
            )
            peak = found.peak_allocated
            if least is None or peak < least[0]:
                least = peak, rung, found
            if _within(found, limits):
                seconds = found.seconds or 0.0
                if best is None or seconds < best[0] * (1 - _ALIKE):
                    best = seconds, rung, found
                break
            others = [s for name, s in found.stages.items() if name != DECODE]
            if not all(limits.holds(stage.peak_allocated_bytes) for stage in others):
                break
    assert least is not None
    smallest = limits.smallest(least[0])
    if best is not None:
        return Climb(best[1], best[2], smallest, ())
    peak, rung, found = least
    stage = found.stages[found.worst]
    return Climb(
        None,
        None,
        smallest,
        (
            f"no level holds a budget of {format_bytes(limits.budget)}: {rung.config.level.value} "
            f"is predicted to need {format_bytes(peak)}, for {stage.operation} in "
            f"{stage.component} ({found.worst}); give {format_bytes(smallest)} or more, or a "
            f"smaller image or batch",
        ),
    )


def _within(found: Prediction, limits: Limits) -> bool:
    device = limits.device is None or found.device_peak <= limits.device
    host = limits.host is None or found.host_bytes <= limits.host
    pinned = limits.pinned is None or found.pinned_bytes <= limits.pinned
    return limits.holds(found.peak_allocated) and device and host and pinned

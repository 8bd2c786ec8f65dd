"""What was foretold of a run's stages beside what was measured, and by how much it was off.

Plain figures. No torch here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .units import format_bytes


@dataclass(frozen=True)
class Verified:
    """One stage. Bytes of torch's allocator at its peak; ``None`` is unknown.

    Attributes:
        stage: such as ``denoising``.
        predicted: with what earlier runs corrected.
        measured: of the run, once there was one.
    """

    stage: str
    predicted: int | None
    measured: int | None = None

    @property
    def error(self) -> float | None:
        """By what part of the measurement the prediction was too high (or too low, negative)."""
        if self.predicted is None or not self.measured:
            return None
        return self.predicted / self.measured - 1

    def text(self) -> str:
        """One line for a person."""
        name = self.stage.replace("_", " ")
        if self.predicted is None:
            return f"{name}: {format_bytes(self.measured)} measured, not predicted"
        if self.measured is None:
            return f"{name}: {format_bytes(self.predicted)} predicted"
        return f"{name}: {format_bytes(self.measured)} measured{self.beside()}"

    def beside(self) -> str:
        """What stands behind the measured figure: the predicted one, and the error."""
        if self.predicted is None:
            return ""
        off = "" if self.error is None else f", {self.error:+.1%}"
        return f" ({format_bytes(self.predicted)} predicted{off})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "stage": self.stage,
            "predicted": self.predicted,
            "measured": self.measured,
            "error": self.error,
        }


def text(
    stages: Iterable[Verified], budget: int | None = None, highest: int | None = None
) -> list[str]:
    """Lines for a person, of the stages that say something, and whether a budget was kept.

    Args:
        highest: bytes at the peak with what stayed there beside the stages' own.
    """
    told = [it for it in stages if it.predicted is not None]
    lines = [f"  {it.text()}" for it in told]
    measured = [it.measured for it in stages if it.measured is not None]
    if budget is not None and measured:
        highest = max(measured) if highest is None else highest
        kept = "kept" if highest <= budget else f"exceeded by {format_bytes(highest - budget)}"
        lines.append(f"  budget of {format_bytes(budget)}: {kept} ({format_bytes(highest)} used)")
    return lines


MOST_RUNS = 32
"""Runs of one graph that are shown, the latest of them."""


@dataclass(frozen=True)
class Run:
    """Stages of one model or pipeline that have run, and the budget they ran under in bytes.

    ``highest`` is the peak with models beside that stayed for turns of theirs; ``None`` = none did.
    """

    name: str
    stages: tuple[Verified, ...]
    budget: int | None = None
    highest: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        stages = [stage.to_dict() for stage in self.stages]
        figures = {"budget": self.budget, "highest": self.highest}
        return {"name": self.name, **figures, "stages": stages}


_lock = threading.Lock()
_runs: list[Run] = []


def note(
    name: str,
    stages: Sequence[Verified],
    budget: int | None = None,
    highest: int | None = None,
) -> None:
    """Keep what a run came to, for the monitor that reads after it; arguments as of ``Run``."""
    if not stages:
        return
    with _lock:
        _runs.append(Run(name, tuple(stages), budget, highest))
        del _runs[:-MOST_RUNS]


def begin() -> None:
    """A graph's run begins: what earlier ones came to is no longer shown."""
    with _lock:
        _runs.clear()


def runs() -> list[Run]:
    """What the runs since came to, the latest last."""
    with _lock:
        return list(_runs)


def of_runs(found: Iterable[Run]) -> list[str]:
    """Lines for a person, of the runs that were predicted or had a budget."""
    lines: list[str] = []
    for run in found:
        told = text(run.stages, run.budget, run.highest)
        if told:
            lines += [f"{run.name}:", *told]
    return lines

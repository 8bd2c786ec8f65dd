"""What an optimisation did to each part of a model, and what it left alone and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .levels import OptimizationLevel
from .strategies.base import Applied, Outcome, Skipped
from .verified import Verified
from .verified import text as verified_text


@dataclass(frozen=True)
class OptimizationReport:
    """The outcomes in the order of application; ``notes`` are sentences about the whole.

    ``stages`` are what a run is predicted to need, and what it was measured to need once a monitor
    has watched one.
    """

    level: OptimizationLevel
    device: str
    entries: Sequence[Outcome]
    notes: Sequence[str] = field(default=())
    stages: Sequence[Verified] = field(default=())

    @property
    def applied(self) -> list[Applied]:
        """What is in force."""
        return [entry for entry in self.entries if isinstance(entry, Applied)]

    @property
    def skipped(self) -> list[Skipped]:
        """What was asked for and is not in force."""
        return [entry for entry in self.entries if isinstance(entry, Skipped)]

    def text(self) -> str:
        """A few lines for a person; equal outcomes of several components share one."""
        lines = [f"Level {self.level.value} on {self.device}", *self.notes]
        lines += verified_text(self.stages)
        lines += [
            f"+ {strategy} ({', '.join(parts)}): {detail}"
            for (strategy, detail), parts in _grouped(
                (entry.strategy, entry.detail, entry.component) for entry in self.applied
            )
        ]
        lines += [
            f"- {strategy} ({', '.join(parts)}): {reason}"
            for (strategy, reason), parts in _grouped(
                (entry.strategy, entry.reason, entry.component) for entry in self.skipped
            )
        ]
        if not self.entries:
            lines.append("nothing to do")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "level": self.level.value,
            "device": self.device,
            "notes": list(self.notes),
            "stages": [stage.to_dict() for stage in self.stages],
            "applied": [
                {"strategy": e.strategy, "component": e.component, "detail": e.detail}
                for e in self.applied
            ],
            "skipped": [
                {"strategy": e.strategy, "component": e.component, "reason": e.reason}
                for e in self.skipped
            ],
        }


def _grouped(rows: Any) -> list[tuple[tuple[str, str], list[str]]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for strategy, text, component in rows:
        groups.setdefault((strategy, text), []).append(component)
    return list(groups.items())

"""What a plan says: the levels' predictions in a table, and the fastest way within a budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..memory.kept_free import KeptFree
from ..memory.planner.batches import said, split
from ..memory.planner.ladder import Climb
from ..memory.planner.planner import Limits
from ..memory.planner.policy import COMFYUI
from ..memory.planner.predict import STAGES, Prediction
from ..memory.planner.work import Work
from ..memory.profile import DeviceProfile
from ..memory.units import GIB, format_bytes
from .table import UNKNOWN, render

PREDICTED = (
    "Predicted, not measured: real model code was traced on a device that does not exist, and its "
    "allocations replayed. Seconds are a roofline of the profile's rates."
)


@dataclass
class Planned:
    """Predictions of one model for one run. ``chosen`` names the row the stages are of."""

    name: str
    engine: str
    work: Work
    profile: DeviceProfile
    limits: Limits
    kept: KeptFree | None = None
    rows: dict[str, Prediction] = field(default_factory=dict)
    chosen: str = ""
    budget: Climb | Any | None = None
    largest_batch: int | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; bytes and seconds. ``stages`` are those of the row chosen."""
        return {
            "predicted": True,
            "model": self.name,
            "engine": self.engine,
            **self.work.to_dict(),
            "profile": self.profile.to_dict(),
            "budget_bytes": self.limits.budget,
            "margin": self.limits.margin,
            "margin_source": None if self.kept is None else self.kept.why,
            "level": self.chosen,
            **(self.rows[self.chosen].to_dict() if self.chosen in self.rows else {}),
            "levels": {name: row.to_dict() for name, row in self.rows.items()},
            "largest_batch": self.largest_batch,
            "plan": None if self.budget is None else self.budget.to_dict(),
            "notes": [PREDICTED, *self.notes],
            "planning_seconds": round(self.seconds, 3),
        }

    def text(self) -> str:
        """The table and what it leaves out."""
        work = self.work
        many = f", {work.batch} images" if work.batch > 1 else ""
        head = (
            f"{self.name}: {work.width}x{work.height}{many}, {work.steps} steps, "
            f"{self.engine}, on {self.profile.text()}"
        )
        stages = [
            stage for stage in STAGES if any(stage in row.stages for row in self.rows.values())
        ]
        table = render(
            ["predicted, GB", *(f"{stage}" for stage in stages), "allocated", "reserved",
             "on the device", "moved", "host", "seconds", "the peak is"],
            [self._row(name, row, stages) for name, row in self.rows.items()],
        )  # fmt: skip
        parts = [head, table, *self._plan(), *self.notes, PREDICTED]
        return "\n\n".join(parts)

    def _row(self, name: str, row: Prediction, stages: list[str]) -> list[str]:
        peaks = [
            _gb(row.stages[stage].peak_allocated_bytes) if stage in row.stages else UNKNOWN
            for stage in stages
        ]
        worst = row.stages[row.worst]
        where = worst.module.split(".")[-1] or worst.component
        return [
            name,
            *peaks,
            _gb(row.peak_allocated),
            _gb(row.peak_reserved),
            _gb(row.device_peak),
            _gb(row.moved_bytes),
            _gb(row.host_bytes),
            UNKNOWN if row.seconds is None else f"{row.seconds:.1f}",
            f"{worst.operation} in {where} ({row.worst})",
        ]

    def _plan(self) -> list[str]:
        if self.budget is None:
            return []
        found = self.budget.to_dict()
        budget = format_bytes(self.limits.budget)
        if not found["fits"]:
            return ["\n".join((*found["advice"], *self._batch()))]
        lines = [f"Within {budget}{'' if self.kept is None else f'; {self.kept.text()}'}:"]
        if found.get("level"):
            changes = ", ".join(f"{k}={v}" for k, v in found["changes"].items())
            lines.append(f"  level {found['level']}{', ' + changes if changes else ''}")
        for name, choice in found.get("choices", {}).items():
            resident, streamed = choice["resident_bytes"], choice["streamed_bytes"]
            changes = ", ".join(f"{k}={v}" for k, v in choice["changes"].items())
            lines.append(
                f"  {name}: {choice['how']}, {format_bytes(resident)} on the device, "
                f"{format_bytes(streamed)} streamed{'; ' + changes if changes else ''}"
            )
        lines.append(
            f"  smallest budget that would do: {format_bytes(self.budget.smallest_budget)}"
        )
        return ["\n".join((*lines, *self._batch()))]

    def _batch(self) -> list[str]:
        if self.largest_batch is None:
            return []
        line = f"  largest batch that fits: {said(self.largest_batch)}"
        if self.engine == COMFYUI:
            return [f"{line}, with that budget in the Memory Level Selector"]
        if 0 < self.largest_batch < self.work.batch:
            parts = split(self.work.batch, self.largest_batch)
            line += f"; the {self.work.batch} images are made in parts of {max(parts)} or fewer"
        return [line]


def _gb(count: int) -> str:
    return f"{count / GIB:.2f}"

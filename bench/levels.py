"""The levels' bench: every level on a fresh pipeline, in one process, against NONE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from ..memory.cleanup import release
from ..memory.levels import OptimizationLevel
from .measure import Job, Row, compare, measure
from .models import Model, targets_for
from .places import Place
from .table import level_table, remarks

DEFAULT_LEVELS = ("none", "balanced", "aggressive", "ultra")


@dataclass
class LevelBench:
    """Rows and images of one bench; images are float32, shape (1, 3, size, size), 0..1."""

    model: Model
    place: Place
    size: int
    steps: int
    dtype: str
    rows: list[Row] = field(default_factory=list)
    images: dict[str, torch.Tensor] = field(default_factory=dict)

    def text(self) -> str:
        """The table, what it has no column for, and what its figures leave out."""
        head = (
            f"{self.model.key}: {self.size} px, {self.steps} steps, {self.dtype}, random weights, "
            f"on {self.place.name}"
        )
        table = level_table(self.rows, targets_for(self.model, self.size))
        warm = self.model.warm_up(self.size)
        timing = f"Each level was warmed up before it was timed (1 step, {warm} px)."
        if any(row.ratio is not None for row in self.rows):
            timing = f"Time ratios are against none. {timing}"
        notes = [*remarks(self.rows), timing, *self.place.notes]
        return "\n\n".join([head, table, *notes])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; bytes and seconds."""
        return {
            "model": self.model.key,
            "size": self.size,
            "steps": self.steps,
            "dtype": self.dtype,
            "device": str(self.place.device),
            "simulated": self.place.simulated is not None,
            "torch": torch.__version__,
            "rows": [row.to_dict() for row in self.rows],
            "to_beat_gb": targets_for(self.model, self.size),
            "notes": list(self.place.notes),
        }


def bench_levels(
    model: Model,
    place: Place,
    *,
    size: int,
    steps: int,
    dtype: str,
    levels: Sequence[OptimizationLevel],
    progress: bool = True,
) -> LevelBench:
    """Measure ``levels`` in the order given. The reference is NONE, wherever it stands."""
    bench = LevelBench(model, place, size, steps, dtype)
    ordered = sorted(levels, key=lambda level: level is not OptimizationLevel.NONE)
    reference: torch.Tensor | None = None
    first: Row | None = None
    measured: dict[str, Row] = {}
    for level in ordered:
        row = measured[level.value] = Row(level.value)
        with tqdm(total=steps, desc=level.value, unit="step", disable=not progress) as bar:
            image = _measure_level(bench, level, row, bar.update)
        if image is not None:
            bench.images[level.value] = image
            if level is OptimizationLevel.NONE:
                reference, first = image, row
            if reference is not None:
                compare(row, first, image, reference)
    bench.rows = [measured[level.value] for level in levels]
    return bench


def _measure_level(
    bench: LevelBench, level: OptimizationLevel, row: Row, step: Callable[[int], Any]
) -> torch.Tensor | None:
    from ..memory.adapters.synthetic import build, run
    from ..memory.optimizer import MemoryOptimizer

    def prepare() -> MemoryOptimizer:
        # A fresh pipeline each time: casting to FP8 loses bits for good, and one copy of the
        # weights at a time is all the host may have room for.
        pipe = build(bench.model.pipeline, bench.dtype)
        optimizer = MemoryOptimizer(level, device=bench.place.device)
        optimizer.optimize_pipeline(pipe)
        assert optimizer.report is not None
        row.applied = optimizer.report.text().splitlines()
        return optimizer

    warm = False

    def generate(optimizer: MemoryOptimizer, size: int, steps: int) -> torch.Tensor:
        nonlocal warm
        counting, warm = warm, True

        def told(_pipe: Any, _step: int, _time: Any, held: dict[str, Any]) -> dict[str, Any]:
            if counting:
                step(1)
            return held

        return run(optimizer.pipeline, size=size, steps=steps, callback_on_step_end=told)

    return measure(
        row,
        bench.place,
        Job(bench.size, bench.steps, bench.model.warm_up(bench.size), generate),
        prepare,
        subject=lambda optimizer: optimizer,
        release=lambda optimizer: _release(optimizer, bench.place),
    )


def _release(optimizer: Any, place: Place) -> None:
    release(optimizer, device=place.device)

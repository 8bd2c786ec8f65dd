"""Predicted time over predicted peak, budget by budget: SDXL 1.0 and FLUX.1 on three cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..memory.planner.work import Work
from ..memory.units import GIB, gb_to_bytes
from .table import UNKNOWN, render

CARDS = ("RTX 3060", "RTX 4060 Ti", "RTX 4090")
"""A common card, one with half the lanes to the host, and a fast one."""
BUDGETS_GB = {
    "sdxl": (0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 13),
    "flux": (0.75, 1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 36),
}
TITLES = {"sdxl": "SDXL 1.0, float16", "flux": "FLUX.1-dev, bfloat16"}
LEVELS = ("none", "balanced", "aggressive", "ultra")
_COLOURS = ("#b3541e", "#1f6f9f", "#3f7d3a")
_MARKS = ("s", "o", "^")
NOTE = (
    "Predicted, not measured: published rates of the cards, of which a part is counted; 1024 px, "
    "30 steps."
)


@dataclass(frozen=True)
class Point:
    """The plan of one budget: GB, seconds, GB moved."""

    budget: float
    peak: float
    seconds: float
    moved: float


@dataclass
class Curves:
    """Points by model and card, and the levels of SDXL as rows; ``None`` = more than was said."""

    points: dict[str, dict[str, list[Point]]] = field(default_factory=dict)
    levels: list[list[Any]] = field(default_factory=list)

    def text(self) -> str:
        """Both tables."""
        rows = []
        for model, cards in self.points.items():
            budgets = sorted({point.budget for points in cards.values() for point in points})
            for budget in budgets:
                found = {
                    card: next((p for p in points if p.budget == budget), None)
                    for card, points in cards.items()
                }
                one = next(point for point in found.values() if point is not None)
                rows.append(
                    [model, f"{budget:g}", f"{one.peak:.2f}", f"{one.moved:.1f}",
                     *(UNKNOWN if p is None else f"{p.seconds:.0f}" for p in found.values())]
                )  # fmt: skip
        heads = ["predicted", "budget, GB", "peak, GB", "moved, GB", *(f"{c}, s" for c in CARDS)]
        levels = render(
            ["SDXL, 1024 px", "allocated, GB", "reserved", "moved", *(f"{c}, s" for c in CARDS)],
            [[str(cell) for cell in row] for row in self.levels],
        )
        return f"{render(heads, rows)}\n\n{levels}\n\n{NOTE}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "predicted": True,
            "points": {
                model: {card: [asdict(point) for point in found] for card, found in cards.items()}
                for model, cards in self.points.items()
            },
            "levels": self.levels,
        }


def curves(budgets: dict[str, Sequence[float]] | None = None, work: Work | None = None) -> Curves:
    """Plan every budget on every card.

    Args:
        budgets: GB by model; ``None`` = those of the chart.
        work: the run; ``None`` = 1024 pixels, 30 steps.
    """
    from ..memory.adapters.plan_subject import pipeline_subject
    from ..memory.levels import MemoryOptimizationConfig
    from ..memory.planner.cache import TraceCache
    from ..memory.planner.planner import Limits
    from ..memory.planner.predict import predict
    from ..memory.profile_published import published
    from ..memory.stores import folder

    store = TraceCache(folder() / "traces")
    run = work or Work()
    result = Curves()
    for model, amounts in (budgets or BUDGETS_GB).items():
        subject = pipeline_subject(model, run, store)
        result.points[model] = {}
        for card in CARDS:
            profile = published(card)
            assert profile is not None
            costs: dict[str, Any] = {
                "rates": profile,
                "workspace_factor": profile.workspace_factor,
                "context_bytes": profile.context_bytes,
            }
            found = result.points[model][card] = []
            for amount in amounts:
                plan = subject.within(Limits(gb_to_bytes(amount)), run, costs).prediction
                if plan is not None and plan.seconds is not None:
                    peak, moved = plan.peak_allocated / GIB, plan.moved_bytes / GIB
                    found.append(Point(amount, peak, plan.seconds, moved))
            if len(result.levels) < len(LEVELS):
                rows = [
                    predict(subject.turns(MemoryOptimizationConfig.from_level(level)), **costs)
                    for level in LEVELS
                ]
                result.levels = [
                    [level, f"{row.peak_allocated / GIB:.2f}", f"{row.peak_reserved / GIB:.2f}",
                     f"{row.moved_bytes / GIB:.1f}", f"{row.seconds:.0f}"]
                    for level, row in zip(LEVELS, rows, strict=True)
                ]  # fmt: skip
            elif model == next(iter(result.points)):
                for line, level in zip(result.levels, LEVELS, strict=True):
                    config = MemoryOptimizationConfig.from_level(level)
                    line.append(f"{predict(subject.turns(config), **costs).seconds:.0f}")
    return result


def draw(result: Curves, path: Path) -> bool:
    """The curves as PNG, a panel a model; ``False`` where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(result.points), squeeze=False)[0]
    for axes, (model, cards) in zip(panels, result.points.items(), strict=True):
        for (card, points), colour, mark in zip(cards.items(), _COLOURS, _MARKS, strict=True):
            axes.plot(
                [point.peak for point in points],
                [point.seconds for point in points],
                color=colour,
                marker=mark,
                markersize=4,
                linewidth=1.5,
                label=card,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = [amount for amount in (0.5, 1, 2, 4, 8, 16, 32) if _within(amount, cards)]
        axes.set_xticks(ticks, [f"{amount:g}" for amount in ticks])
        axes.minorticks_off()
        low, high = axes.get_ylim()
        marks = [s for s in (5, 10, 20, 50, 100, 200, 500, 1000, 2000) if low <= s <= high]
        axes.set_yticks(marks, [str(seconds) for seconds in marks])
        axes.set_title(TITLES.get(model, model), fontsize=11)
        axes.set_xlabel("predicted peak allocated on the device, GB")
        axes.set_ylabel("predicted time of a run, seconds")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=9)
    figure.suptitle(NOTE, fontsize=9)
    figure.savefig(path, dpi=110)
    return True


def _within(amount: float, cards: dict[str, list[Point]]) -> bool:
    peaks = [point.peak for points in cards.values() for point in points]
    return min(peaks) / 1.3 <= amount <= max(peaks) * 1.3

"""Whether a run will fit, told before it runs: peaks and times of its stages at every level.

Predictions of the planner for models that are loaded, beside a budget or what the device has.
Nothing is loaded, moved or changed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import BudgetError, ConfigError
from .levels import MemoryOptimizationConfig, OptimizationLevel
from .planner.batches import said
from .planner.ladder import LADDER
from .planner.predict import DECODE, DENOISE, ENCODE, Prediction, predict
from .planner.work import Work
from .units import format_bytes, gb_to_bytes

if TYPE_CHECKING:
    import torch

ACTIONS = ("report", "stop")
NODES = {ENCODE: "text encoding", DENOISE: "sampling", DECODE: "VAE decoding"}
_NOTE = (
    "Predicted, not measured. Seconds compare ways of placing weights by a profile of the device; "
    "they say little about a card until its profile was measured. LoRAs, ControlNets and what "
    "other packs add to a model are not counted."
)


@dataclass(frozen=True)
class Row:
    """One way to run: a level, the configuration that is plugged in, or a budget."""

    name: str
    prediction: Prediction
    need: int
    fits: bool | None


@dataclass
class Checked:
    """What was found. ``limit`` is in bytes and ``None`` where nobody knows what the device has."""

    work: Work
    limit: int | None
    limited_by: str
    rows: list[Row] = field(default_factory=list)
    judged: Row | None = None
    unknown: list[str] = field(default_factory=list)
    smallest_budget: int | None = None
    largest_batch: int | None = None
    """Images at once that fit, 64 at most; ``None`` = not known."""

    def text(self) -> str:
        """A table, a row for each way to run and a column for each stage."""
        work = self.work
        lines = [
            f"{work.width} x {work.height}, batch {work.batch}, {work.steps} steps; "
            f"{self.limited_by}: {format_bytes(self.limit)}",
            f"{'':<12}" + "".join(f"{name:>16}" for name in (*NODES.values(), "time", "")),
        ]
        for row in self.rows:
            stages = row.prediction.stages
            cells = [
                format_bytes(stages[stage].peak_allocated_bytes) if stage in stages else "-"
                for stage in NODES
            ]
            seconds = row.prediction.seconds
            cells += ["-" if seconds is None else f"{seconds:.1f} s", _verdict(row.fits)]
            lines.append(f"{row.name:<12}" + "".join(f"{cell:>16}" for cell in cells))
        lines += [f"Unknown: {reason}" for reason in self.unknown]
        if self.smallest_budget is not None:
            least = format_bytes(self.smallest_budget)
            lines.append(f"The smallest budget that is predicted to do: {least}")
        if self.largest_batch is not None:
            lines.append(f"The largest batch that is predicted to fit: {said(self.largest_batch)}")
        return "\n".join([*lines, _NOTE])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, sizes in bytes."""
        return {
            "work": self.work.to_dict(),
            "limit_bytes": self.limit,
            "limited_by": self.limited_by,
            "fits": None if self.judged is None else self.judged.fits,
            "judged": None if self.judged is None else self.judged.name,
            "smallest_budget_bytes": self.smallest_budget,
            "largest_batch": self.largest_batch,
            "unknown": self.unknown,
            "rows": [
                {
                    "name": row.name,
                    "need_bytes": row.need,
                    "fits": row.fits,
                    **row.prediction.to_dict(),
                }
                for row in self.rows
            ],
        }


def fit_check(
    config: MemoryOptimizationConfig | None,
    work: Work,
    budget_gb: float,
    action: str,
    *,
    model: Any = None,
    clip: Any = None,
    vae: Any = None,
    latent: Any = None,
) -> tuple[str, str, torch.Tensor]:
    """Table, JSON and chart (1, height, width, 3; 0 to 1) of a run of ComfyUI's models.

    Args:
        config: what the run is optimised with; ``None`` = nothing.
        work: of the widgets; ``latent`` takes the place of its sizes.
        budget_gb: 0 = the configuration's budget, or what the device has.
        action: ``stop`` raises where the run is predicted not to fit.

    Raises:
        LowtideError: this process is no ComfyUI.
        ConfigError: an unknown action, or a budget that is no amount.
        TargetError: no model is plugged in, or something else than a model.
        BudgetError: with ``stop``, the run does not fit.
    """
    from .adapters import comfy
    from .fit_chart import chart

    comfy.require("Lowtide Fit Check")
    if action not in ACTIONS:
        raise ConfigError(f"unknown choice {action!r}; choose one of: {', '.join(ACTIONS)}")
    if not 0 <= budget_gb < float("inf"):
        raise ConfigError(f"a budget of {budget_gb} GB cannot be kept; give more, or 0 for none")
    found = _check(config, work, budget_gb, model, clip, vae, latent)
    judged = found.judged
    if action == "stop" and judged is not None and judged.fits is False:
        raise BudgetError(_refusal(found, judged))
    return found.text(), json.dumps(found.to_dict(), indent=1), chart(found)


def _check(
    config: MemoryOptimizationConfig | None,
    work: Work,
    budget_gb: float,
    model: Any,
    clip: Any,
    vae: Any,
    latent: Any,
) -> Checked:
    from .adapters.comfy import plan_check

    budget = gb_to_bytes(budget_gb) if budget_gb else None
    if budget is None and config is not None:
        budget = config.budget_bytes
    parts = {"model": model, "clip": clip, "vae": vae}
    work = plan_check.work_of(work, latent, parts)
    subject, unknown = plan_check.known_parts(work, parts)
    limit = plan_check.available() if budget is None else budget
    by = "free for this process" if budget is None else "the budget"
    found = Checked(work, limit, by, unknown=unknown)
    if subject is None:
        return found
    costs = plan_check.costs()

    def add(name: str, how: MemoryOptimizationConfig) -> Row:
        prediction = predict(subject.turns(how), **costs)
        need = prediction.peak_reserved if budget is None else prediction.peak_allocated
        row = Row(name, prediction, need, None if limit is None else need <= limit)
        found.rows.append(row)
        return row

    levels = {level: add(level.value, _level(level)) for level in LADDER}
    found.judged = levels[OptimizationLevel.NONE]
    if budget is not None:
        row = add("the budget", _level(OptimizationLevel.NONE).replace(budget_bytes=budget))
        if not row.fits:
            found.smallest_budget = plan_check.smallest_budget(subject, budget, costs)
    if config is not None:
        found.judged = add("plugged in", config)
    if limit is not None and not unknown:
        way = _level(OptimizationLevel.NONE) if config is None else config
        found.largest_batch = plan_check.largest_batch(subject, way, budget, limit, costs)
    return found


def _level(level: OptimizationLevel) -> MemoryOptimizationConfig:
    return MemoryOptimizationConfig.from_level(level)


def _verdict(fits: bool | None) -> str:
    return "fits?" if fits is None else "fits" if fits else "does not fit"


def _refusal(found: Checked, judged: Row) -> str:
    """What, how much, and the remedy."""
    worst = judged.prediction.worst
    over = judged.need - (found.limit or 0)
    text = (
        f"this graph is predicted to need {format_bytes(judged.need)} at its peak "
        f"({NODES[worst]}), {format_bytes(over)} more than {found.limited_by} of "
        f"{format_bytes(found.limit)}"
    )
    fitting = next((row.name for row in found.rows if row.fits and row is not judged), None)
    if fitting == "the budget":
        return f"{text}. Give the Memory Level Selector that budget: then weights are streamed"
    if fitting is not None:
        return f"{text}. Level {fitting} of the Memory Level Selector is predicted to fit"
    least = ""
    if found.smallest_budget is not None:
        least = f"give at least {format_bytes(found.smallest_budget)}, or "
    return f"{text}, and no level fits: {least}make the image or the batch smaller"

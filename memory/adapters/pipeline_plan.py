"""Plans a diffusers pipeline under a budget: the fastest way whose predicted peak fits.

The pipeline's own code is traced for the run asked for; what was set by hand is kept. A level whose
own peak fits stays as it is. Else each component gets a share of the device in its turn.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .. import profiles, stores
from ..candidates import at_level
from ..device import snapshot
from ..errors import BudgetError, LowtideError
from ..levels import CHOSEN_FOR_YOU, PLANNED, MemoryOptimizationConfig, OptimizationLevel
from ..planner.batches import split
from ..planner.cache import TraceCache
from ..planner.planner import MARGIN, Limits
from ..planner.predict import ENCODE, Prediction, predict
from ..planner.turns import TurnsPlan
from ..planner.work import Work
from ..strategies.turns import Share
from ..units import format_bytes, givable
from .diffusers_traces import PipelineTraces
from .pipeline_batches import images_at_once
from .turn_options import TurnOptions, paths_of

logger = logging.getLogger("lowtide")


@dataclass(frozen=True)
class PipelinePlan:
    """What a budget comes to.

    Attributes:
        config: to be applied; its ``offload`` is ``planned`` where ``shares`` say what lies where.
        fp8: components whose weights are stored in FP8, where it is planned.
        note: what was chosen, a sentence.
        turns: the plan itself, where there is one.
    """

    config: MemoryOptimizationConfig
    prediction: Prediction
    note: str
    shares: dict[str, Share] = field(default_factory=dict)
    fp8: tuple[str, ...] = ()
    turns: TurnsPlan | None = None


def same_plan(one: PipelinePlan | None, other: PipelinePlan | None) -> bool:
    """Whether two plans put the same weights in the same places."""
    if one is None or other is None:
        return one is other
    return one.shares == other.shares and one.fp8 == other.fp8


def plan_pipeline(
    pipe: Any,
    config: MemoryOptimizationConfig,
    work: Work,
    device: torch.device,
    *,
    margin: float = MARGIN,
) -> PipelinePlan | None:
    """The plan for ``config.budget_bytes``; ``None`` where the pipeline cannot be traced, or a
    setting made by hand excludes a plan.

    Args:
        margin: part of the prediction to keep free.

    Raises:
        BudgetError: nothing fits; the message names the smallest budget that would.
    """
    assert config.budget_bytes is not None
    try:
        return _Planner(pipe, config, work, device, margin).plan()
    except BudgetError:
        raise
    except Exception as error:  # a model nobody has met may break anything here
        expected = isinstance(error, LowtideError)
        logger.info("this budget is kept by estimates: %s", error, exc_info=not expected)
        return None


def plan_batch(
    pipe: Any,
    config: MemoryOptimizationConfig,
    work: Work,
    device: torch.device,
    margin: float = MARGIN,
    *,
    in_parts: bool = True,
) -> tuple[PipelinePlan | None, int]:
    """The plan for ``work``, or for as many of its images at once as fit; and how many that is.

    Raises:
        BudgetError: not even one image fits.
    """
    try:
        return plan_pipeline(pipe, config, work, device, margin=margin), work.batch
    except BudgetError:
        if work.batch == 1 or not in_parts:
            raise
        planner = _Planner(pipe, config, work, device, margin)
        fitting = images_at_once(
            pipe,
            planner.base,
            work,
            config.budget_bytes or 0,
            planner.rates,
            workspace_factor=planner.rates.workspace_factor,
            store=planner.traces.store,
            most=work.batch - 1,
            margin=margin,
        )
        if not fitting:
            raise
    part = max(split(work.batch, fitting))
    return plan_pipeline(pipe, config, replace(work, batch=part), device, margin=margin), part


class _Planner:
    """One question."""

    def __init__(
        self,
        pipe: Any,
        config: MemoryOptimizationConfig,
        work: Work,
        device: torch.device,
        margin: float,
    ) -> None:
        if config.offload == PLANNED:
            config = config.replace(offload="none")  # an earlier plan's, changed by hand since
        self.asked = config
        self.work = work
        self.limits = Limits(
            config.budget_bytes, margin=margin, faithful=not config.fp8_storage, by_moved=True
        )
        profile = profiles.known(snapshot(device).name, str(torch.__version__))
        self.rates = profile
        self.costs: dict[str, Any] = {
            "workspace_factor": profile.workspace_factor,
            "context_bytes": profile.context_bytes,
        }
        self.traces = PipelineTraces(pipe, work, store=TraceCache(stores.folder() / "traces"))
        self.base = at_level(config, OptimizationLevel.NONE).replace(
            budget_bytes=None,
            cpu_mode=config.cpu_mode,
            fp8_storage=config.fp8_storage,
            compute_dtype=config.compute_dtype,
            keep_originals=config.keep_originals,
        )

    def plan(self) -> PipelinePlan:
        """The level asked for if it fits, else a share for each component."""
        automatic = self.asked.requested_level in CHOSEN_FOR_YOU
        own = self.base if automatic else self.asked.replace(budget_bytes=None)
        as_it_is = predict(self.traces.turns(own), rates=self.rates, **self.costs)
        if self.limits.holds(as_it_is.peak_allocated):
            note = (
                f"{self._budget()}: level {own.level.value} fits as it is, predicted to take "
                f"{format_bytes(as_it_is.peak_allocated)}"
            )
            return PipelinePlan(own.replace(budget_bytes=self.asked.budget_bytes), as_it_is, note)
        return self._shared(TurnOptions(self.traces, self.base))

    def _shared(self, options: TurnOptions) -> PipelinePlan:
        plan = options.best(self.limits, self.rates, **self.costs)
        if not plan.fits:
            raise BudgetError(self._refusal(plan))
        return self._settled(plan)

    def _settled(self, plan: TurnsPlan) -> PipelinePlan:
        changes: dict[str, Any] = {}
        for choice in plan.choices.values():
            changes.update({k: v for k, v in choice.changes.items() if k != "fp8_storage"})
        fp8 = tuple(n for n, choice in plan.choices.items() if choice.turn.placement.fp8)
        assert plan.prediction is not None
        reason = f"{PLANNED} for a budget of {format_bytes(self.asked.budget_bytes)}"
        kept = {} if fp8 else {"compute_dtype": None, "keep_originals": True}
        config = self.base.replace(
            offload=PLANNED,
            budget_bytes=self.asked.budget_bytes,
            fp8_storage=bool(fp8),
            requested_level=self.asked.requested_level,
            reason=reason,
            **kept,
            **changes,
        )
        shares = {
            name: Share(
                paths_of(choice.turn),
                name in plan.stays,
                plan.waits if choice.turn.stage == ENCODE else frozenset(),
            )
            for name, choice in plan.choices.items()
        }
        how = ", ".join(
            f"{name} {'stays' if name in plan.stays else choice.how}"
            for name, choice in plan.choices.items()
        )
        note = (
            f"{self._budget()}: {how}; predicted to take "
            f"{format_bytes(plan.prediction.peak_allocated)} and to move "
            f"{format_bytes(plan.prediction.moved_bytes)}"
        )
        return PipelinePlan(config, plan.prediction, note, shares, fp8, plan)

    def _budget(self) -> str:
        many = f", {self.work.batch} images at once" if self.work.batch > 1 else ""
        return (
            f"budget {format_bytes(self.asked.budget_bytes)} for {self.work.width} x "
            f"{self.work.height} pixels{many}"
        )

    def _refusal(self, plan: TurnsPlan) -> str:
        size = f"{self.work.width} x {self.work.height} pixels"
        if self.work.batch > 1:
            size += f" and {self.work.batch} images at once"
        need = format_bytes(givable(plan.smallest_budget))
        return (
            f"a budget of {format_bytes(self.asked.budget_bytes)} does not hold this pipeline at "
            f"{size}; give {need} or more, or leave the budget out: {'; '.join(plan.advice)}"
        )

"""How many images of a diffusers pipeline fit a budget at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..levels import MemoryOptimizationConfig
from ..planner.batches import MOST, largest_batch
from ..planner.cache import TraceCache
from ..planner.planner import MARGIN, Limits, choose
from ..planner.predict import DECODE
from ..planner.schedule import Rates
from ..planner.work import Work
from .diffusers_traces import PipelineTraces
from .turn_options import TurnOptions


def smallest_budget(
    pipe: Any,
    config: MemoryOptimizationConfig,
    work: Work,
    rates: Rates,
    *,
    workspace_factor: float = 1.0,
    store: TraceCache | None = None,
    margin: float = MARGIN,
) -> int:
    """Bytes of the least budget ``work`` can be planned with; feed-forward chunks left out.

    Raises:
        TargetError: the pipeline cannot be traced.
    """
    options = TurnOptions(PipelineTraces(pipe, work, store=store), config)
    limits = Limits(budget=1, margin=margin)
    least = 0
    for name, plain in options.plain.items():
        ways = [plain]
        if plain.turn.stage == DECODE:
            ways += options.smaller(name)
        plan = choose([ways], limits, rates, workspace_factor=workspace_factor)
        least = max(least, plan.smallest_budget)
    return least


def images_at_once(
    pipe: Any,
    config: MemoryOptimizationConfig,
    work: Work,
    budget: int,
    rates: Rates,
    *,
    workspace_factor: float = 1.0,
    store: TraceCache | None = None,
    most: int = MOST,
    margin: float = MARGIN,
) -> int:
    """The largest batch of ``work``'s images, up to ``most``, that ``budget`` holds; 0 = not one.

    ``margin`` is the part of a prediction that is kept free.

    Raises:
        TargetError: the pipeline cannot be traced.
    """

    def need(batch: int) -> int:
        return smallest_budget(
            pipe,
            config,
            replace(work, batch=batch),
            rates,
            workspace_factor=workspace_factor,
            store=store,
            margin=margin,
        )

    return largest_batch(need, budget, most)

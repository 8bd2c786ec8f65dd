"""How long planning takes here: SDXL at 1024 pixels traced anew, found again, and planned."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .table import render

COLD, CACHED, PLAN = 5.0, 0.05, 1.0
"""Seconds aimed at: all components traced; all of them found on disk; a plan of one budget."""


@dataclass(frozen=True)
class Speed:
    """Seconds of a CPU, imports left out."""

    cold: float
    cached: float
    predict: float
    plan: float

    @property
    def failed(self) -> bool:
        """Whether one of them is over what was aimed at."""
        return self.cold > COLD or self.cached > CACHED or self.plan > PLAN

    def text(self) -> str:
        """The table."""
        return render(
            ["SDXL, 1024 px", "CPU seconds", "aimed at"],
            [
                ["traces of all components, anew", f"{self.cold:.2f}", f"{COLD:g}"],
                ["the same, from disk and checked", f"{self.cached:.3f}", f"{CACHED:g}"],
                ["one level predicted", f"{self.predict:.3f}", "-"],
                ["a plan for 2 GB, traces from disk", f"{self.plan:.2f}", f"{PLAN:g}"],
            ],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "failed": self.failed}


def measure() -> Speed:
    """Trace, find and plan, each once after what they import is there."""
    from ..memory.adapters.diffusers_traces import PipelineTraces
    from ..memory.adapters.synthetic import build
    from ..memory.adapters.turn_options import TurnOptions
    from ..memory.levels import MemoryOptimizationConfig
    from ..memory.planner.cache import TraceCache
    from ..memory.planner.planner import Limits
    from ..memory.planner.predict import predict
    from ..memory.planner.work import Work
    from ..memory.profile_published import published

    config = MemoryOptimizationConfig()
    PipelineTraces(build("tiny-sdxl", on_meta=True), Work(128, 128)).turns(config)  # imports
    rates = published("RTX 3060")
    assert rates is not None
    with tempfile.TemporaryDirectory() as folder:
        store = TraceCache(Path(folder))
        pipe = build("sdxl", on_meta=True)
        traces = PipelineTraces(pipe, Work(), store=store)
        cold = _seconds(lambda: traces.turns(config))
        again = PipelineTraces(pipe, Work(), store=store)
        cached = _seconds(lambda: again.turns(config))
        turns = again.turns(config)
        one = _seconds(lambda: predict(turns, rates=rates))
        limits = Limits(2 << 30, faithful=True, by_moved=True)
        TurnOptions(again, config).best(limits, rates)  # traces what a plan looks at besides
        # Read anew, so that nothing the line above worked out is known.
        anew = PipelineTraces(pipe, Work(), store=TraceCache(Path(folder)))
        plan = _seconds(lambda: TurnOptions(anew, config).best(limits, rates))
    return Speed(cold, cached, one, plan)


def _seconds(work: Any) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started

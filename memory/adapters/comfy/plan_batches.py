"""How many images ComfyUI's models make at once within a limit, by traces of two batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ...levels import MemoryOptimizationConfig
from ...planner.batches import largest_batch
from ...planner.planner import Limits
from ...planner.predict import ENCODE, Turn, predict
from ...planner.scaled import scaled
from ...planner.trace import Trace
from ...planner.work import Work
from .plan_budget import may_stream, peak_of, streamed
from .plan_traces import ComfyTraces
from .plan_vae import DECODE_WORK, VaeWork


@dataclass
class BatchTraces(ComfyTraces):
    """As ``ComfyTraces``, for any batch: two or three are recorded, the others on the line through
    them.

    Attributes:
        at: the batch whose traces there were before.
        recorded: their traces by work; filled as they are asked for, shared by all batches.
    """

    at: int = 1
    recorded: dict[Work, ComfyTraces] = field(default_factory=dict)

    @classmethod
    def beside(cls, traces: ComfyTraces) -> BatchTraces:
        """Those of other batches than ``traces``, which count as recorded."""
        return cls(
            traces.models,
            traces.work,
            traces.store,
            traces.attention,
            traces.workspace_factor,
            traces.loader,
            traces.work.batch,
            {traces.work: traces},
        )

    def of(self, batch: int) -> BatchTraces:
        """The same run with another batch."""
        return replace(self, work=replace(self.work, batch=batch))

    def trace(self, name: str, config: MemoryOptimizationConfig) -> Trace:
        """As ``ComfyTraces.trace``."""
        if name == "clip":  # one prompt is encoded, whatever the batch
            return self._of(self.at).trace(name, config)
        if name == "vae":
            return self._vae_trace(self._vae_work(DECODE_WORK, config), config)
        return self._on_the_line(
            lambda traces: traces.trace(name, config), lambda: self._own().trace(name, config)
        )

    def lean(self, config: MemoryOptimizationConfig) -> list[Turn]:
        """What the models do with nothing resident that can be streamed, one cond at a time."""
        loader, found = self._loader, []
        if self.models.clip is not None:
            turn = self._turn("clip", ENCODE, self.trace("clip", config), config)
            found.append(self.following(streamed(turn, loader)))
        if self.models.model is not None:
            alone = self
            if self.guided:
                alone = replace(self, work=replace(self.work, guided=False))
            found.append(streamed(alone._sampled(config), loader))
        if self.models.vae is not None:
            turn = self.vae_turn(DECODE_WORK, config)
            found.append(streamed(turn, loader) if may_stream(self.models.vae) else turn)
        return found

    def _vae_trace(self, asked: VaeWork, config: MemoryOptimizationConfig) -> Trace:
        def ask(traces: ComfyTraces) -> Trace | None:
            theirs = traces._vae_work(asked.kind, config)
            if _cut(theirs) != _cut(asked):
                return None
            return traces._vae_trace(theirs, config)

        near = self._of(self.at)
        if near._vae_work(asked.kind, config).shape == asked.shape:
            found = ask(near)  # image by image: the batch is only how often
            if found is not None:
                return found
        return self._on_the_line(ask, lambda: self._own()._vae_trace(asked, config))

    def _on_the_line(
        self, ask: Callable[[ComfyTraces], Trace | None], record: Callable[[], Trace]
    ) -> Trace:
        for pair in ((1, max(2, self.at)), (2, max(3, self.at))):
            if self.work.batch in pair:
                break
            one, other = (ask(self._of(batch)) for batch in pair)
            if one is not None and other is not None:
                found = scaled(one, other, pair, self.work.batch)
                if found is not None:
                    return found
            # One image alone may take other kernels than several: the second pair is without it.
        else:
            return record()
        return ask(self._own()) or record()

    def _of(self, batch: int) -> ComfyTraces:
        """The recorded traces of a batch."""
        work = replace(self.work, batch=batch)
        if work not in self.recorded:
            self.recorded[work] = ComfyTraces(
                self.models,
                work,
                self.store,
                self.attention,
                self.workspace_factor,
                self.loader,
            )
        return self.recorded[work]

    def _own(self) -> ComfyTraces:
        return self._of(self.work.batch)


def within_budget(traces: ComfyTraces, config: MemoryOptimizationConfig, limits: Limits) -> int:
    """The largest batch that ``config`` makes within the budget of ``limits``, its margin kept.

    Weights are streamed as far as it takes; 0 = not even one image.

    Raises:
        TargetError: a model can't be traced.
    """
    assert limits.budget is not None
    under = config.replace(budget_bytes=limits.budget)
    others = BatchTraces.beside(traces)

    def need(batch: int) -> int:
        turns = others.of(batch).lean(under)
        peak = max(peak_of(turn, traces.workspace_factor) for turn in turns)
        return math.ceil(peak * (1 + limits.margin))

    return largest_batch(need, limits.budget)


def within_device(
    traces: ComfyTraces, config: MemoryOptimizationConfig, free: int, costs: dict[str, Any]
) -> int:
    """The largest batch that ``config`` makes while no more than ``free`` bytes are reserved.

    Raises:
        TargetError: a model can't be traced.
    """
    others = BatchTraces.beside(traces)

    def need(batch: int) -> int:
        return predict(others.of(batch).turns(config), **costs).peak_reserved

    return largest_batch(need, free)


def _cut(asked: VaeWork) -> tuple[Any, ...]:
    """How the work is cut, whatever it takes."""
    return asked.shape[1:], asked.job.tile, asked.job.strips

"""Applies a configuration to a diffusers pipeline, reports what it did, and takes it back.

The order of application: what the user had enabled goes, weights are cast, layers and the VAE are
wrapped, offload hooks come last. The undo runs in reverse and leaves the pipeline bit by bit as it
was, and nothing of it in the device's cache.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from . import backend
from .adapters import pipelines
from .adapters.pipeline_plan import same_plan
from .candidates import same_effect
from .cleanup import cleanup_due, release
from .device import snapshot
from .errors import LowtideError
from .evict import clear_of_tables
from .in_force import MARK, holders
from .later import planning
from .levels import CHOSEN_FOR_YOU, MemoryOptimizationConfig, OptimizationLevel
from .planner.work import Work
from .report import OptimizationReport
from .rescue import is_out_of_memory
from .strategies import placement
from .strategies.base import Applied, Outcome, Undo, override, undo_all
from .strategies.structure import guard, guard_part
from .verified import Verified

if TYPE_CHECKING:
    from .adapters.pipeline_plan import PipelinePlan
    from .foresight import Chosen

logger = logging.getLogger("lowtide")


class MemoryOptimizer:
    """One configuration, in force on at most one pipeline. Not thread-safe.

    ``with MemoryOptimizer("ultra") as optimizer: optimizer.optimize_pipeline(pipe)`` undoes on
    exit, errors included.

    Attributes:
        pipeline: the optimised pipeline, None when there is none.
        report: what was done to it; stays readable after the undo.
        plan: what a budget came to, with its prediction; None without a budget, or where the
            pipeline cannot be traced and an estimate chose a level.
        device: where it computes.
    """

    def __init__(
        self,
        config: MemoryOptimizationConfig | OptimizationLevel | str | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        """``config`` may be a level or its name; None is AUTO. ``device`` None is the best one.

        Raises:
            ConfigError: an unknown level, or settings that exclude each other.
            DeviceError: no such device.
        """
        self.device = backend.device_of(device)
        found = snapshot(self.device)
        self._total = found.total
        if isinstance(config, MemoryOptimizationConfig):
            self._asked = config
        else:
            level = OptimizationLevel.parse(OptimizationLevel.AUTO if config is None else config)
            if level in CHOSEN_FOR_YOU:
                self._asked = MemoryOptimizationConfig.auto(found, requested_level=level)
            else:
                self._asked = MemoryOptimizationConfig.from_level(level)
        self._asked.validate()
        self._in_force: MemoryOptimizationConfig | None = None
        self._chosen: dict[str, Any] = {}
        self._applied_from: dict[str, Any] | None = None
        self._undos: list[Undo] = []
        self._parts: dict[str, torch.nn.Module] = {}
        self._unguard: Undo | None = None
        self._work: Work | None = None
        self._prepare: Callable[[], None] | None = None
        self._suspended = False
        self.pipeline: Any = None
        self.report: OptimizationReport | None = None
        self.plan: PipelinePlan | None = None

    @property
    def config(self) -> MemoryOptimizationConfig:
        """The configuration in force (a budget may have chosen its level), else the one asked."""
        return self._in_force or self._asked

    @config.setter
    def config(self, config: MemoryOptimizationConfig) -> None:
        config.validate()
        self._asked, self._in_force = config, None

    def optimize_pipeline(
        self, pipe: Any, work: Work | None = None, *, chosen: Chosen | None = None
    ) -> Any:
        """Apply the configuration to ``pipe`` and return the same object.

        FASTEST and a budget are settled for the run ``work`` describes, ``None`` for one image of
        the pipeline's default size; what it is predicted to need is in the report. ``chosen``:
        what they were settled to already.

        Again with the same configuration it only brings back what a release took off the device
        and no hook would bring; with a changed one, with components
        exchanged, or on another pipeline, what is in force is undone first. So is what another
        optimizer has in force on this pipeline, or on one that shares a component with it.

        Raises:
            TargetError: no pipeline, or one that lacks the VAE its class asks for.
            ConfigError, BudgetError: a setting that does not suit this pipeline or device.
            LowtideError: a technique failed; what had been applied before it is undone.
        """
        pipelines.require_pipeline(pipe)
        self._take_over_changes()
        if (
            self.pipeline is pipe
            and self._applied_from == self._asked.to_dict()
            and self._parts == pipelines.modules_of(pipe)
            and self._serves(work, chosen)
        ):
            self._place_again()
            return pipe
        if self.pipeline is not None:
            self.undo()
        for other in holders(pipe):
            other.undo()
        self._asked.validate(device_bytes=self._total)
        self._work = work
        self._apply(pipe, chosen)
        self._unguard = guard(pipe, self._plain)
        vars(pipe)[MARK] = self
        logger.info("%s", self.report.text() if self.report else "")
        self._clean("after_load")
        return pipe

    @property
    def placed(self) -> tuple[str, ...]:
        """Components put on the device to stay: no hook brings them back after a release."""
        if self.pipeline is None or self.report is None or self.device.type == "cpu":
            return ()
        return tuple(e.component for e in self.report.applied if e.strategy == placement.NAME)

    def _serves(self, work: Work | None, chosen: Chosen | None) -> bool:
        """Whether what is in force is what ``work`` would be given; ``None`` is any run."""
        if work is None or (work == self._work and chosen is None):
            return True
        chosen = chosen or pipelines.settle(self._asked, self.pipeline, self.device, work)
        if self._in_force is None or not same_effect(chosen.config, self._in_force):
            return False
        if not same_plan(chosen.plan, self.plan):
            return False
        self.plan = chosen.plan
        self._work, self._prepare = work, chosen.prepare
        if self.report is not None:
            self.report = replace(self.report, notes=chosen.notes, stages=chosen.stages)
        return True

    def _place_again(self) -> None:
        try:
            for name in self.placed:
                self._parts[name].to(self.device)
        except BaseException:
            self.undo()
            raise

    def _take_over_changes(self) -> None:
        """A configuration a budget chose, once changed by hand, is what is asked for."""
        chosen = self._in_force
        if chosen is None or chosen is self._asked:
            return
        if chosen.to_dict() != self._chosen:
            self._asked = chosen.replace()

    def undo(self) -> None:
        """Leave the pipeline as it was before; nothing if nothing is in force."""
        pipe = self.pipeline
        if pipe is None:
            return
        try:
            self._leave(pipe)
            self._take_back()
        finally:
            self.pipeline = self._in_force = self._applied_from = None
            self._parts = {}

    def after_run(self, measured: Sequence[Verified]) -> None:
        """A monitored run is over: the report shows what it needed, and what was not predicted in
        time is prepared for the next one."""
        if measured and self.report is not None:
            self.report = replace(self.report, stages=tuple(measured))
        prepare, self._prepare = self._prepare, None
        if prepare is not None:
            planning.do(f"pipeline {id(self.pipeline)} {self._work}", prepare)

    def __enter__(self) -> MemoryOptimizer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def _apply(self, pipe: Any, chosen: Chosen | None = None) -> None:
        chosen = chosen or pipelines.settle(self._asked, pipe, self.device, self._work)
        config, self.plan = chosen.config, chosen.plan
        entries: list[Outcome] = []
        self.pipeline, self._applied_from = pipe, self._asked.to_dict()
        try:
            for outcome in pipelines.apply_all(chosen.runs(), pipe, self.device, self.plan):
                entries.append(outcome)
                if isinstance(outcome, Applied):
                    self._undos.append(outcome.undo)
        except BaseException as failure:
            done = [entry.strategy for entry in entries if isinstance(entry, Applied)]
            self._take_back()
            self.pipeline = self._applied_from = None
            if is_out_of_memory(failure):
                pipelines.ran_out(config, pipe, self.device, self._work)
            if isinstance(failure, LowtideError | torch.OutOfMemoryError) or not isinstance(
                failure, Exception
            ):
                raise
            raise LowtideError(
                f"optimising this {type(pipe).__name__} at level {config.level.value} failed: "
                f"{type(failure).__name__}: {failure}. Undone: "
                f"{', '.join(dict.fromkeys(done)) or 'nothing had been applied'}"
            ) from failure
        self._parts = pipelines.modules_of(pipe)
        parts = self._parts.values()
        self._undos += [override(part, MARK, weakref.ref(self)) for part in parts]
        self._undos += [guard_part(part, self._plain) for part in parts]
        self._in_force, self._chosen = config, config.to_dict()
        self._prepare = chosen.prepare
        self.report = OptimizationReport(
            config.level, str(self.device), entries, chosen.notes, chosen.stages
        )

    def _take_back(self) -> None:
        """Undo in reverse, then leave nothing of the pipeline on a device it was not on before."""
        undos, self._undos = self._undos[::-1], []
        try:
            undo_all(undos)
        finally:
            if self.device.type != "cpu" and self.pipeline is not None:
                clear_of_tables(self.pipeline, self.device)
                release(device=self.device)

    def _leave(self, pipe: Any) -> None:
        """Take our name and our wrappers off the pipeline."""
        vars(pipe).pop(MARK, None)
        unguard, self._unguard = self._unguard, None
        undo_all([unguard] if unguard else [])

    def _clean(self, moment: str) -> None:
        if self.device.type != "cpu" and cleanup_due(self.config, moment, self.device):
            release(device=self.device)

    @contextmanager
    def _plain(self, method: str) -> Iterator[None]:
        """The pipeline without its optimisation, for the length of a structural change."""
        if self._suspended:
            yield
            return
        pipe = self.pipeline
        self._suspended = True
        self._take_back()
        try:
            yield
        finally:
            self._suspended = False
            try:
                self._apply(pipe)
            except BaseException:
                # The pipeline is plain now: it must not keep wrappers of an optimizer without one.
                self._in_force = None
                self._leave(pipe)
                raise
        self._clean("after_lora")
        logger.debug("%s ran on the plain pipeline; the optimisation is in force again", method)

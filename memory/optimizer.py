"""Applies a configuration to a diffusers pipeline, reports what it did, and takes it back.

The order of application: what the user had enabled goes, weights are cast, layers and the VAE are
wrapped, offload hooks come last. The undo runs in reverse and leaves the pipeline bit by bit as it
was, and nothing of it in the device's cache.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from . import backend, profiles
from .adapters import comfy, pipelines
from .cleanup import cleanup_due, release
from .device import snapshot
from .errors import LowtideError
from .evict import evict
from .levels import MemoryOptimizationConfig, OptimizationLevel
from .report import OptimizationReport
from .strategies import placement
from .strategies.base import Applied, Outcome, Undo, override, undo_all
from .strategies.structure import guard, guard_part
from .targets import parts_of

if TYPE_CHECKING:
    from .adapters.pipeline_plan import PipelinePlan
    from .planner.work import Work

logger = logging.getLogger("lowtide")

_IN_FORCE = "_lowtide_optimizer"
"""The attribute of a pipeline that names the optimizer in force on it; its components have a weak
reference there, since other pipelines may be made of them, or copies.

A registry here would keep both, and what they hold on the device, for ever: each refers to the
other, and as a plain cycle they can be collected.
"""


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
        elif config is None or OptimizationLevel.parse(config) is OptimizationLevel.AUTO:
            self._asked = MemoryOptimizationConfig.auto(found)
        else:
            self._asked = MemoryOptimizationConfig.from_level(config)
        self._asked.validate()
        self._work: Work | None = None
        self._in_force: MemoryOptimizationConfig | None = None
        self._chosen: dict[str, Any] = {}
        self._applied_from: dict[str, Any] | None = None
        self._undos: list[Undo] = []
        self._parts: dict[str, torch.nn.Module] = {}
        self._unguard: Undo | None = None
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
        self, pipe: Any, work: Work | None = None, *, settled: pipelines.Settled | None = None
    ) -> Any:
        """Apply the configuration to ``pipe`` and return the same object.

        A budget is planned for the run ``work`` describes, ``None`` for one image of the pipeline's
        default size; with another run than before the plan is made anew.

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
            and (work is None or work == self._work or self._asked.budget_bytes is None)
        ):
            self._place_again()
            return pipe
        if self.pipeline is not None:
            self.undo()
        for other in _holders(pipe):
            other.undo()
        self._asked.validate(device_bytes=self._total)
        self._work = work
        self._know_device()
        self._apply(pipe, settled)
        self._unguard = guard(pipe, self._plain)
        vars(pipe)[_IN_FORCE] = self
        logger.info("%s", self.report.text() if self.report else "")
        self._clean("after_load")
        return pipe

    @property
    def placed(self) -> tuple[str, ...]:
        """Components put on the device to stay: no hook brings them back after a release."""
        if self.pipeline is None or self.report is None or self.device.type == "cpu":
            return ()
        return tuple(e.component for e in self.report.applied if e.strategy == placement.NAME)

    def _place_again(self) -> None:
        try:
            for name in self.placed:
                self._parts[name].to(self.device)
        except BaseException:
            self.undo()
            raise

    def _know_device(self) -> None:
        """Measure what a plan counts with, at the first use of a device: 10 seconds at most.

        Not inside ComfyUI, where a prompt would wait for it: published figures do until then.
        """
        if self._asked.budget_bytes is None or self.device.type == "cpu" or comfy.present():
            return
        profiles.measured(self.device)

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

    def __enter__(self) -> MemoryOptimizer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def _apply(self, pipe: Any, settled: pipelines.Settled | None = None) -> None:
        settled = settled or pipelines.settle(self._asked, pipe, self.device, self._work)
        config, self.plan = settled.config, settled.plan
        entries: list[Outcome] = []
        self.pipeline, self._applied_from = pipe, self._asked.to_dict()
        try:
            for outcome in pipelines.apply_all(config, pipe, self.device, self.plan):
                entries.append(outcome)
                if isinstance(outcome, Applied):
                    self._undos.append(outcome.undo)
        except BaseException as failure:
            done = [entry.strategy for entry in entries if isinstance(entry, Applied)]
            self._take_back()
            self.pipeline = self._applied_from = None
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
        self._undos += [override(part, _IN_FORCE, weakref.ref(self)) for part in parts]
        self._undos += [guard_part(part, self._plain) for part in parts]
        self._in_force, self._chosen = config, config.to_dict()
        self.report = OptimizationReport(config.level, str(self.device), entries, settled.notes)

    def _take_back(self) -> None:
        """Undo in reverse, then leave nothing of the pipeline on a device it was not on before."""
        undos, self._undos = self._undos[::-1], []
        try:
            undo_all(undos)
        finally:
            self._clear_device()

    def _clear_device(self) -> None:
        if self.device.type == "cpu" or self.pipeline is None:
            return
        parts = list(parts_of(self.pipeline))
        weights = [part for _, part in parts if isinstance(part, torch.nn.Module)]
        if not any(p.device == self.device for part in weights for p in part.parameters()):
            for _, part in parts:
                if not isinstance(part, torch.nn.Module):
                    evict(part, self.device)
        release(device=self.device)

    def _leave(self, pipe: Any) -> None:
        """Take our name and our wrappers off the pipeline."""
        vars(pipe).pop(_IN_FORCE, None)
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


def _holders(pipe: Any) -> Iterator[MemoryOptimizer]:
    """The optimizers in force on the pipeline or on any of its components."""
    whole = vars(pipe).get(_IN_FORCE)
    if whole is not None:
        yield whole
    for part in pipelines.modules_of(pipe).values():
        mark = vars(part).get(_IN_FORCE)
        holder = None if mark is None else mark()
        if holder is not None:
            yield holder

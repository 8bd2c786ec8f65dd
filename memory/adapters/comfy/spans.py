"""The timeline of one prompt: opens and closes a span around every node that runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from ... import backend
from ...highwater import HighWater, Sampler
from ...peaks import Peak, PeakWindow
from ...timeline import DONE, RUNNING, NodeSpan, RunTimeline, Timelines
from . import dynamic, moved
from .moved import Moved

STEPS_KEPT = 1000


@dataclass
class _Open:
    """A node that has started and not ended.

    ``window`` is ``None`` while it waits for others: a lazy input, an asynchronous result.
    """

    before: int | None
    started: float
    mark: HighWater
    peak: Peak = field(default_factory=Peak)
    seconds: float = 0.0
    moved: Moved = field(default_factory=Moved)
    resumed: float = 0.0
    moved_before: Moved = field(default_factory=Moved)
    window: PeakWindow | None = None
    step: PeakWindow | None = None
    steps: list[int] = field(default_factory=list)


class Recorder:
    """Fills one :class:`RunTimeline`, told of starts, steps and ends by a progress handler.

    A node waits, and is not measured, while another one runs that it did not make itself: ComfyUI
    says when a node starts, and not when it is put back for an input it lacks.
    """

    def __init__(
        self,
        timelines: Timelines,
        run: str,
        device: torch.device,
        graph: Any,
        cached: tuple[str, ...] = (),
        step_peaks: bool = True,
    ) -> None:
        self._timelines = timelines
        self.device = device
        self._graph = graph
        self._step_peaks = step_peaks
        self._began = time.perf_counter()
        self._open: dict[str, _Open] = {}
        pages = (lambda: dynamic.pages(device)) if dynamic.active() else None
        self.timeline = RunTimeline(run, str(device), time.time(), cached=cached)
        self._sampler = Sampler(device, pages, self.timeline.samples)
        self._moved = moved.read()
        self._mark = self._sampler.open()
        self._window = PeakWindow(device)
        timelines.begin(self.timeline)

    def start(self, node: str) -> None:
        """A node begins, or goes on after it waited."""
        ancestors = set(self._ancestors(node))
        for other in list(self._open):
            if other != node and other not in ancestors:
                self._suspend(self._open[other])
        found = self._open.get(node)
        if found is None:
            found = self._open[node] = _Open(
                backend.allocated(self.device), self._now(), self._sampler.open()
            )
        for waiting in (*(self._open[it] for it in ancestors if it in self._open), found):
            if waiting.window is None:
                waiting.window = PeakWindow(self.device)
                waiting.resumed = self._now()
                waiting.moved_before = moved.read()

    def step(self, node: str) -> None:
        """A node's progress went on by one; the first step counts from the node's start."""
        found = self._open.get(node)
        if not self._step_peaks or found is None or found.window is None:
            return
        if len(found.steps) >= STEPS_KEPT:
            return
        peak = found.window.read() if found.step is None else found.step.close()
        if peak.allocated is not None:
            found.steps.append(peak.allocated)
        found.step = PeakWindow(self.device)

    def finish(self, node: str, status: str = DONE) -> NodeSpan | None:
        """A node ended; its span, or ``None`` if it never started (it was cached)."""
        found = self._open.pop(node, None)
        if found is None:
            return None
        self._suspend(found)
        mark = self._sampler.close(found.mark)
        span = NodeSpan(
            node=node,
            class_type=self._class_type(node),
            parent=self._graph.get_parent_node_id(node),
            started=found.started,
            seconds=found.seconds,
            peak_allocated=found.peak.allocated,
            peak_reserved=found.peak.reserved,
            before=found.before,
            after=backend.allocated(self.device),
            device_peak=mark.device,
            host_peak=mark.host,
            status=status,
            steps=tuple(found.steps),
            to_device=found.moved.to_device,
            from_device=found.moved.from_device,
            pages_peak=mark.pages,
        )
        self._timelines.add(self.timeline, span)
        return span

    def peak(self) -> Peak:
        """The peak since the prompt began."""
        return self._window.read()

    def end(self, status: str) -> None:
        """The prompt ended; nodes that have not are ended with it. Again changes nothing."""
        if self.timeline.status != RUNNING:
            return
        for node in reversed(list(self._open)):
            self.finish(node, status)
        peak, mark = self._window.close(), self._sampler.close(self._mark)
        self._sampler.stop()
        timeline = self.timeline
        timeline.peak_allocated, timeline.peak_reserved = peak.allocated, peak.reserved
        timeline.device_peak, timeline.host_peak = mark.device, mark.host
        timeline.pages_peak = mark.pages
        whole = moved.read() - self._moved
        timeline.to_device, timeline.from_device = whole.to_device, whole.from_device
        timeline.after_allocated = backend.allocated(self.device)
        timeline.after_reserved = backend.reserved(self.device)
        timeline.seconds = self._now()
        timeline.status = status
        self._timelines.end(timeline)

    def _suspend(self, found: _Open) -> None:
        if found.step is not None:
            found.step.close()
            found.step = None
        if found.window is not None:
            found.peak = found.peak.joined(found.window.close())
            found.window = None
            found.seconds += self._now() - found.resumed
            found.moved += moved.read() - found.moved_before

    def _ancestors(self, node: str) -> list[str]:
        found = []
        parent = self._graph.get_parent_node_id(node)
        while parent is not None:
            found.append(parent)
            parent = self._graph.get_parent_node_id(parent)
        return found

    def _class_type(self, node: str) -> str:
        return str(self._graph.get_node(node)["class_type"])

    def _now(self) -> float:
        return time.perf_counter() - self._began

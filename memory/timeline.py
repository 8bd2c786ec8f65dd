"""What the last runs of a host's graph used, node by node: plain records, bounded in number.

Written by the host's adapter, from the thread that runs the graph, and read by any thread.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .series import Series

logger = logging.getLogger("lowtide")

KEPT = 20
"""Runs remembered, the oldest forgotten first."""

RUNNING, DONE, FAILED, INTERRUPTED = "running", "done", "failed", "interrupted"


@dataclass(frozen=True)
class NodeSpan:
    """One node that ran. Bytes and seconds; ``None`` is unknown.

    Attributes:
        node: its id in the graph; of a node made by another one, with that one's id in front.
        parent: the node that made it, if one did; the parent's figures include it.
        started: seconds from the start of the run.
        seconds: wall time, without the time in which other nodes ran before it went on.
        peak_allocated, peak_reserved: highest figures of torch's allocator meanwhile.
        before, after: bytes allocated at its start and end.
        device_peak: highest use of the whole device by everyone, sampled.
        host_peak: highest RSS of the process, sampled.
        steps: peak allocated of each sampling step, in their order.
        to_device, from_device: bytes of models' weights moved, streamed ones at each use.
        pages_peak: most of the host's own pages of weights, which torch does not count; sampled.
    """

    node: str
    class_type: str
    parent: str | None
    started: float
    seconds: float
    peak_allocated: int | None
    peak_reserved: int | None
    before: int | None
    after: int | None
    device_peak: int | None
    host_peak: int | None
    status: str
    steps: tuple[int, ...] = ()
    to_device: int | None = None
    from_device: int | None = None
    pages_peak: int | None = None


@dataclass(frozen=True)
class Release:
    """A model that was taken off the device between two nodes.

    Attributes:
        after: the node that had just ended; ``None`` at the end of the run.
        owner: the model's class.
        freed: bytes of its weights that were on the device.
        seconds: wall time it took.
        reason: why then.
    """

    after: str | None
    owner: str
    freed: int
    seconds: float
    reason: str


@dataclass(frozen=True)
class Attempt:
    """One more run of a node that ran out of memory.

    Attributes:
        node: its id.
        rung: what was done before it, by name.
        outcome: ``finished``, ``out of memory again``, or the name of another error.
        seconds: wall time of it all.
        freed: bytes given back to the driver before the node ran again.
    """

    node: str
    rung: str
    outcome: str
    seconds: float
    freed: int = 0


@dataclass
class RunTimeline:
    """One run of a graph, its nodes in the order in which they ended."""

    run: str
    device: str
    started_at: float
    """Unix time."""
    seconds: float = 0.0
    status: str = RUNNING
    peak_allocated: int | None = None
    peak_reserved: int | None = None
    device_peak: int | None = None
    host_peak: int | None = None
    pages_peak: int | None = None
    to_device: int | None = None
    from_device: int | None = None
    after_allocated: int | None = None
    after_reserved: int | None = None
    cached: tuple[str, ...] = ()
    """Nodes whose results were taken from the host's cache."""
    nodes: list[NodeSpan] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    samples: Series = field(default_factory=Series)
    """Seconds, bytes allocated, reserved and used of the whole device, sampled."""

    def of(self, node: str) -> NodeSpan | None:
        """The last span of a node, if it ran."""
        return next((span for span in reversed(self.nodes) if span.node == node), None)

    def to_dict(self) -> dict[str, Any]:
        """The run as plain JSON values."""
        plain: dict[str, Any] = {it.name: getattr(self, it.name) for it in fields(self)}
        for name in ("nodes", "releases", "attempts"):
            plain[name] = [asdict(event) for event in plain[name]]
        plain["samples"] = self.samples.rows()
        return plain


Event = NodeSpan | Release | Attempt

Listener = Callable[[RunTimeline, "Event | None"], None]
"""Is told of a run that began or ended (``None``; its status says which) and of its events."""


class Timelines:
    """The last runs. Safe to use from any thread."""

    def __init__(self, kept: int = KEPT) -> None:
        self._lock = threading.Lock()
        self._runs: deque[RunTimeline] = deque(maxlen=kept)
        self._listeners: tuple[Listener, ...] = ()

    def subscribe(self, listener: Listener) -> None:
        """Have ``listener`` told of all that happens from now on, in the writer's thread.

        What it raises is logged and goes no further.
        """
        with self._lock:
            if listener not in self._listeners:
                self._listeners += (listener,)

    def begin(self, timeline: RunTimeline) -> None:
        """Add a run, which its owner goes on to fill."""
        with self._lock:
            self._runs.append(timeline)
        self._tell(timeline, None)

    def end(self, timeline: RunTimeline) -> None:
        """A run is over, and all is known of it."""
        self._tell(timeline, None)

    def add(self, timeline: RunTimeline, event: Event) -> None:
        """Append a node that ended, a model that left, or another attempt of a node."""
        with self._lock:
            if isinstance(event, NodeSpan):
                timeline.nodes.append(event)
            elif isinstance(event, Release):
                timeline.releases.append(event)
            else:
                timeline.attempts.append(event)
        self._tell(timeline, event)

    def all(self) -> list[dict[str, Any]]:
        """Copies of the runs as plain JSON values, the latest last."""
        with self._lock:
            return [timeline.to_dict() for timeline in self._runs]

    def last(self) -> RunTimeline | None:
        """The latest run, finished or not."""
        with self._lock:
            return self._runs[-1] if self._runs else None

    def clear(self) -> None:
        """Forget every run."""
        with self._lock:
            self._runs.clear()

    def _tell(self, timeline: RunTimeline, event: Event | None) -> None:
        for listener in self._listeners:
            try:
                listener(timeline, event)
            except Exception:
                logger.exception("a listener to Lowtide's timeline failed")

"""What nodes took on the device in earlier runs, by their signature; for this process's life."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ....planner.api_graph import Graph
from ....timeline import DONE, NodeSpan, RunTimeline
from ....units import format_bytes
from .signature import signatures

MOST = 4000
"""Nodes remembered; the one that has not run for longest is forgotten first."""

_lock = threading.Lock()
_peaks: OrderedDict[str, tuple[int, float]] = OrderedDict()
_run: dict[str, Any] = {"name": None, "signatures": {}}


def begin(run: str, graph: Graph, setting: str) -> None:
    """A run of ``graph`` begins; ``setting`` as in ``signatures``."""
    named = signatures(graph, setting)
    with _lock:
        _run.update(name=run, signatures=named)


def note(timeline: RunTimeline, span: NodeSpan) -> None:
    """A node of the run has ended. One that failed says nothing: it wanted more than it got."""
    if span.status != DONE or span.peak_allocated is None:
        return
    with _lock:
        signature = _run["signatures"].get(span.node) if _run["name"] == timeline.run else None
        if signature is None:
            return
        _peaks.pop(signature, None)
        _peaks[signature] = span.peak_allocated + (span.pages_peak or 0), time.time()
        while len(_peaks) > MOST:
            _peaks.popitem(last=False)


def last_signatures() -> dict[str, str]:
    """Those of the last run's nodes: ComfyUI's cache holds the results of these."""
    with _lock:
        return dict(_run["signatures"])


def known(_graph: Graph, node: str, named: Mapping[str, str]) -> tuple[int, str] | None:
    """The peak the node had with these inputs, and when."""
    with _lock:
        found = _peaks.get(named[node])
    if found is None:
        return None
    peak, at = found
    when = time.strftime("%H:%M:%S", time.localtime(at))
    return (
        peak,
        f"measured: {format_bytes(peak)} allocated at its highest with these inputs, {when}",
    )


def forget() -> None:
    """Know nothing any more."""
    with _lock:
        _peaks.clear()
        _run.update(name=None, signatures={})

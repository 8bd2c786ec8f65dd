"""Whether a graph's nodes would fit what is free now, and where the figures are from.

A :data:`Source` says what one node of a graph would take. They are asked in order, the surest
first, and the first that knows is believed; a node nobody knows is said to be unknown. Predictions
that are not ready yet are counted: whoever asked asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .... import backend, override
from ....adapters import comfy
from ....device import snapshot
from ....levels import OptimizationLevel
from ....planner.api_graph import Graph, well_formed
from ....units import format_bytes
from .. import dynamic
from . import estimates, headers, nodes_measured, planned, tidy
from .answers import Found, Unknown
from .signature import signatures

_SELECTOR = "LowtideMemoryLevelSelector"
_STRONGER = {
    None: "add Lowtide Memory Level Selector and Optimize Pipeline, at level balanced",
    "none": "set the Memory Level Selector to balanced",
    "balanced": "set the Memory Level Selector to aggressive",
    "aggressive": "set the Memory Level Selector to ultra",
    "ultra": "make the image or the batch smaller",
    "auto": "set the Memory Level Selector to ultra",
    "fastest": "set the Memory Level Selector to ultra",
}
_UNKNOWN = "never measured here with these inputs, and ComfyUI has no estimate for it"


@dataclass(frozen=True)
class Figure:
    """``need`` bytes on the device at the node's peak, weights included; ``why``: from where."""

    need: int
    why: str


Source = Callable[[Graph, str, Mapping[str, str]], "Found | Unknown | None"]
"""From a graph, a node's id and the signatures of all nodes to the bytes needed and their origin.

``None`` = it does not know. Called from a thread of the server, while a prompt may be running.
"""

SOURCES: list[Source] = [
    nodes_measured.known,
    planned.predicted,
    headers.predicted,
    estimates.estimate,
]
"""Asked in this order."""


def check(graph: Mapping[str, Any]) -> dict[str, Any]:
    """Per node ``need``, ``free``, ``fits``, ``why`` and ``remedy``, and whether all of it fits.
    ``pending``: of how many nodes something better will be known soon.

    ``fits`` is ``None`` where it is not known; of the graph: False if a node does not fit, else
    ``None`` if one is unknown. ``free`` is what the process could have: what is free, and what its
    own allocator holds, for ComfyUI takes models off the device to make room.
    """
    free, level = available(), _level(graph)
    named = signatures(graph, setting_of(graph, override.next_runs()))
    nodes, pending = {}, 0
    try:
        for node in graph:
            figure, unknown = _asked(graph, node, named)
            nodes[tidy.line(node)] = _answer(graph[node], figure, unknown, free, level)
            pending += any(it.pending for it in unknown)
    finally:
        headers.done()
    said = {answer["fits"] for answer in nodes.values()}
    fits = False if False in said else None if None in said else True
    return {"nodes": nodes, "fits": fits, "pending": pending}


def available() -> int | None:
    """Bytes of ComfyUI's device this process could have; ``None`` where nobody knows."""
    device = backend.device_of(comfy.device())
    if not backend.is_initialized(device):
        return None
    found = snapshot(device).counting(dynamic.pages(device))
    if found.free is None or found.unified:
        return found.free
    return found.free + (found.reserved or 0)


def setting_of(graph: Mapping[str, Any], wanted: override.Override) -> str:
    """What stands in for the widgets of the graph's selectors; nothing if it has none."""
    has_one = any(well_formed(it) and it["class_type"] == _SELECTOR for it in graph.values())
    return wanted.text() if has_one and wanted else ""


def _answer(
    node: Any,
    figure: Figure | None,
    unknown: list[Unknown],
    free: int | None,
    level: str | None,
) -> dict[str, Any]:
    if figure is None:
        why = _UNKNOWN if well_formed(node) else "it is no node: it has no class or inputs"
        why = next((it.why for it in unknown if it.why), why)
        return {"need": None, "free": free, "fits": None, "why": why, "remedy": None}
    fits = None if free is None else figure.need <= free
    remedy = None
    if fits is False:
        remedy = f"{format_bytes(figure.need - (free or 0))} too much: {_STRONGER[level]}"
    return {"need": figure.need, "free": free, "fits": fits, "why": figure.why, "remedy": remedy}


def _asked(
    graph: Graph, node: str, named: Mapping[str, str]
) -> tuple[Figure | None, list[Unknown]]:
    """The first source's figure, and what those before it said instead."""
    unknown: list[Unknown] = []
    if node not in named:
        return None, unknown
    for source in SOURCES:
        found = source(graph, node, named)
        if isinstance(found, Unknown):
            unknown.append(found)
        elif found is not None:
            return Figure(*found), unknown
    return None, unknown


def _level(graph: Mapping[str, Any]) -> str | None:
    """The level the next run would have: the override's, or that of the graph's selector."""
    selectors = [it for it in graph.values() if well_formed(it) and it["class_type"] == _SELECTOR]
    if not selectors:
        return None
    said = override.next_runs().level or selectors[-1]["inputs"].get("level")
    known = [level.value for level in OptimizationLevel]
    return said if isinstance(said, str) and said in known else "auto"

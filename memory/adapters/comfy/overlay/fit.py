"""Whether a graph's nodes would fit what is free now, and where the figures are from.

A :data:`Source` says what one node of a graph would take. They are asked in order, the surest
first, and the first that knows is believed; a node nobody knows is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .... import backend, override
from ....adapters import comfy
from ....device import snapshot
from ....levels import OptimizationLevel
from ....units import format_bytes
from .. import dynamic
from . import estimates, nodes_measured, planned, tidy
from .signature import Graph, signatures, well_formed

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


Source = Callable[[Graph, str, Mapping[str, str]], "tuple[int, str] | None"]
"""From a graph, a node's id and the signatures of all nodes to the bytes needed and their origin.

``None`` = it does not know. Called from a thread of the server, while a prompt may be running.
"""

SOURCES: list[Source] = [nodes_measured.known, planned.predicted, estimates.estimate]
"""Asked in this order."""


def check(graph: Mapping[str, Any]) -> dict[str, Any]:
    """Per node ``need``, ``free``, ``fits``, ``why`` and ``remedy``, and whether all of it fits.

    ``fits`` is ``None`` where it is not known; of the graph: False if a node does not fit, else
    ``None`` if one is unknown. ``free`` is what the process could have: what is free, and what its
    own allocator holds, for ComfyUI takes models off the device to make room.
    """
    free, level = available(), _level(graph)
    named = signatures(graph, setting_of(graph, override.next_runs()))
    nodes = {node: _node(graph, node, named, free, level) for node in graph}
    said = {answer["fits"] for answer in nodes.values()}
    fits = False if False in said else None if None in said else True
    return {"nodes": {tidy.line(node): answer for node, answer in nodes.items()}, "fits": fits}


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


def _node(
    graph: Mapping[str, Any],
    node: str,
    named: Mapping[str, str],
    free: int | None,
    level: str | None,
) -> dict[str, Any]:
    figure = _figure(graph, node, named)
    if figure is None:
        why = _UNKNOWN if well_formed(graph[node]) else "it is no node: it has no class or inputs"
        return {"need": None, "free": free, "fits": None, "why": why, "remedy": None}
    fits = None if free is None else figure.need <= free
    remedy = None
    if fits is False:
        remedy = f"{format_bytes(figure.need - (free or 0))} too much: {_STRONGER[level]}"
    return {"need": figure.need, "free": free, "fits": fits, "why": figure.why, "remedy": remedy}


def _figure(graph: Mapping[str, Any], node: str, named: Mapping[str, str]) -> Figure | None:
    if node not in named:
        return None
    for source in SOURCES:
        found = source(graph, node, named)
        if found is not None:
            return Figure(*found)
    return None


def _level(graph: Mapping[str, Any]) -> str | None:
    """The level the next run would have: the override's, or that of the graph's selector."""
    selectors = [it for it in graph.values() if well_formed(it) and it["class_type"] == _SELECTOR]
    if not selectors:
        return None
    said = override.next_runs().level or selectors[-1]["inputs"].get("level")
    known = [level.value for level in OptimizationLevel]
    return said if isinstance(said, str) and said in known else "auto"

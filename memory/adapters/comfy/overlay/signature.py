"""A name for what a node would do in memory: its class, its inputs, and those of all before it.

Equal for two graphs in which nothing differs that changes how much memory the node takes: a seed
or a file's name does not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ....planner.api_graph import Graph, links, well_formed

IGNORED = frozenset(("seed", "noise_seed", "control_after_generate", "filename_prefix"))
"""Inputs on which the memory a node takes does not depend."""


def signatures(graph: Graph, setting: str = "") -> dict[str, str]:
    """Node id -> signature. Nodes in a circle, or behind one, and malformed ones have none.

    Args:
        setting: what counts beside the graph, such as an override of its level.
    """
    found: dict[str, str] = {}
    sources = {node: _sources(graph, node) for node in graph}
    todo = list(graph)
    opened: set[str] = set()
    while todo:
        node = todo.pop()
        if node in found or sources.get(node) is None:
            continue
        missing = [it for it in sources[node] or () if it in graph and it not in found]
        if not missing:
            found[node] = _digest(graph, node, found, setting)
        elif node not in opened:
            opened.add(node)
            todo += [node, *missing]
    return found


def _sources(graph: Graph, node: str) -> list[str] | None:
    found = graph[node]
    return [source for source, _ in links(found).values()] if well_formed(found) else None


def _digest(graph: Graph, node: str, found: Mapping[str, str], setting: str) -> str:
    linked = links(graph[node])
    inputs = {
        name: [found.get(linked[name][0], "missing"), linked[name][1]]
        if name in linked
        else _plain(value)
        for name, value in graph[node]["inputs"].items()
        if name not in IGNORED
    }
    text = json.dumps(
        [graph[node]["class_type"], inputs, setting],
        sort_keys=True,
        default=lambda it: str(type(it)),
    )
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    """Whole numbers as integers: a browser sends 4 where ComfyUI, in place, makes it 4.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value

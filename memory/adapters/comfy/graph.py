"""What the rest of a running prompt still needs: the models its pending nodes will be handed.

A pending node gets its inputs from nodes that have run or from other pending ones. So whatever a
pending node may use reaches it through a link from a node that has run, and it is enough to look
at those. Lazy inputs and branches that may not run count as needed: a model is kept rather than
moved twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

Outputs = Callable[[str], "list[Any] | None"]

_DEPTH = 4
"""How far containers are searched: a conditioning holds its ControlNet three levels down."""


def pending_nodes(graph: Any, done: set[str]) -> set[str]:
    """Nodes of the prompt that lead to an output and are not in ``done``.

    What a pending node made of itself counts with it: only its results are linked to an output.
    """
    import nodes

    todo = [
        node
        for node in graph.all_node_ids()
        if getattr(_class(nodes, graph, node), "OUTPUT_NODE", False)
    ]
    made: dict[str, list[str]] = {}
    for node in graph.all_node_ids():
        parent = graph.get_parent_node_id(node)
        if parent is not None:
            made.setdefault(parent, []).append(node)
    found: set[str] = set()
    while todo:
        node = todo.pop()
        if node in found or node in done or not graph.has_node(node):
            continue
        found.add(node)
        todo += [source for source, _ in _links(graph, node)]
        todo += made.get(node, ())
    return found


def needed_patchers(graph: Any, done: set[str], outputs: Outputs) -> list[Any] | None:
    """Patchers of models that reach a pending node: from one that has run, or as its own input.

    ``None`` if a pending node's input is in no cache, so that what it needs is not known.

    Args:
        graph: ComfyUI's ``DynamicPrompt``.
        done: ids of nodes that have run or were cached.
        outputs: a function from a node's id to the list of its outputs, each a list of values,
            or ``None`` where they are not known.
    """
    found: list[Any] = []
    for node in pending_nodes(graph, done):
        for source, socket in _links(graph, node):
            if source not in done:
                continue
            values = outputs(source)
            if values is None:
                return None
            if socket < len(values):
                found += patchers_in(values[socket])
        for value in graph.get_node(node)["inputs"].values():
            found += patchers_in(value)  # given by the node that made it
    return found


def moment_of(graph: Any, node: str, outputs: Outputs) -> str | None:
    """Which moment of cleanup the end of ``node`` is: ``after_load`` where it made a model of none,
    ``after_lora`` where it put patches on one; ``None`` where it did neither.
    """
    made = [it for values in outputs(node) or () for it in patchers_in(values)]
    if not made:
        return None
    given = [
        it
        for source, socket in _links(graph, node)
        for it in patchers_in((outputs(source) or [])[socket : socket + 1])
    ]
    moment = None
    for one in made:
        like = [other for other in given if one.is_clone(other)]
        if not like:
            return "after_load"
        if all(one.patches_uuid != other.patches_uuid for other in like):
            moment = "after_lora"
    return moment


def inputs_of(graph: Any, node: str, outputs: Outputs) -> list[Any]:
    """What the linked inputs of ``node`` were given, the first value of each that is known."""
    found = []
    for source, socket in _links(graph, node):
        values = outputs(source)
        if values is not None and socket < len(values) and values[socket]:
            found.append(values[socket][0])
    return found


def patchers_in(value: Any, depth: int = _DEPTH) -> Iterator[Any]:
    """Model patchers that a node's output holds: the value itself, its parts, its items."""
    if value is None or isinstance(value, (str, bytes, int, float, complex, torch.Tensor)):
        return
    if is_patcher(value):
        yield value
        if hasattr(value, "get_nested_additional_models"):
            yield from value.get_nested_additional_models()
        return
    if isinstance(value, dict):
        items: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple)):
        items = value
    else:
        yield from _of_object(value, depth)
        return
    if depth:
        for item in items:
            yield from patchers_in(item, depth - 1)


def is_patcher(value: Any) -> bool:
    """Whether a value is a model's patcher."""
    return hasattr(value, "is_clone") and hasattr(value, "model_size")


def _of_object(value: Any, depth: int) -> Iterator[Any]:
    """CLIP, VAE, guiders and such hold a patcher; ControlNets give theirs by a method."""
    if hasattr(value, "get_models"):
        yield from value.get_models()
    for name in ("patcher", "model_patcher"):
        inner = getattr(value, name, None)
        if inner is not None and depth:
            yield from patchers_in(inner, depth - 1)
    conds = getattr(value, "conds", None)
    if conds is not None and depth:
        yield from patchers_in(conds, depth - 1)


def _links(graph: Any, node: str) -> list[tuple[str, int]]:
    inputs = graph.get_node(node)["inputs"]
    return [
        (value[0], int(value[1]))
        for value in inputs.values()
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
    ]


def _class(nodes: Any, graph: Any, node: str) -> Any:
    return nodes.NODE_CLASS_MAPPINGS.get(graph.get_node(node)["class_type"])

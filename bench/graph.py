"""Runs ComfyUI graphs in API format without ComfyUI: the pack's nodes, and images to files.

Only what output nodes need is run, in dependency order; a result is dropped as soon as the last
node that reads it has run. Nothing is cached between runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..memory.errors import ConfigError

Graph = Mapping[str, Mapping[str, Any]]
_NUMBERS: dict[str, type] = {"INT": int, "FLOAT": float}


def is_link(value: Any) -> bool:
    """Whether an input's value is another node's output: ``["node id", output index]``."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def order(graph: Graph, classes: Mapping[str, Any]) -> list[str]:
    """Node ids in an order in which each comes after those it reads; output nodes' needs only.

    Raises:
        ConfigError: no output node, an unknown class, a link to nowhere, or a cycle.
    """
    for node, entry in graph.items():
        if entry.get("class_type") not in classes:
            raise ConfigError(
                f"node {node} is a {entry.get('class_type')!r}, which is not here; "
                f"this runner knows {', '.join(sorted(classes))}"
            )
    outputs = [n for n in graph if getattr(classes[graph[n]["class_type"]], "OUTPUT_NODE", False)]
    if not outputs:
        raise ConfigError("the graph has no output node, such as SaveImage: nothing would run")
    done: dict[str, None] = {}
    for node in outputs:
        _visit(graph, node, done, [])
    return list(done)


def _visit(graph: Graph, node: str, done: dict[str, None], path: list[str]) -> None:
    if node in done:
        return
    if node in path:
        raise ConfigError(f"the graph runs in a circle: {' -> '.join([*path, node])}")
    for name, source, _ in _links(graph[node]):
        if source not in graph:
            raise ConfigError(f"input {name!r} of node {node} reads node {source}: no such node")
        _visit(graph, source, done, [*path, node])
    done[node] = None


def _links(entry: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    for name, value in entry.get("inputs", {}).items():
        if is_link(value):
            yield name, value[0], value[1]


def run_graph(
    graph: Graph,
    classes: Mapping[str, Any],
    on_node: Callable[[str, str], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run a graph; gives what its nodes would show in ComfyUI's interface, by node id.

    Args:
        classes: class name -> node class, as in ``NODE_CLASS_MAPPINGS``.
        on_node: told (node id, class name) before each node runs.

    Raises:
        ConfigError: a graph that cannot run: see :func:`order`, or a missing or wrong input.
    """
    ids = order(graph, classes)
    readers = {node: sum(s == node for n in ids for _, s, _ in _links(graph[n])) for node in ids}
    results: dict[str, tuple[Any, ...]] = {}
    shown: dict[str, dict[str, Any]] = {}
    for node in ids:
        kind = graph[node]["class_type"]
        if on_node is not None:
            on_node(node, kind)
        instance = classes[kind]()
        values = _inputs(node, graph, classes[kind], results)
        returned = getattr(instance, classes[kind].FUNCTION)(**values)
        del values
        if isinstance(returned, dict):
            shown[node] = returned.get("ui", {})
            returned = returned.get("result", ())
        if readers[node]:
            results[node] = tuple(returned)
        del returned
        for _, source, _ in _links(graph[node]):
            readers[source] -= 1
            if not readers[source]:
                results.pop(source, None)
    return shown


def _inputs(
    node: str, graph: Graph, kind: Any, results: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    given = graph[node].get("inputs", {})
    declared = kind.INPUT_TYPES()
    values: dict[str, Any] = {}
    for section in ("required", "optional"):
        for name, spec in declared.get(section, {}).items():
            label = f"input {name!r} of node {node} ({graph[node]['class_type']})"
            if name not in given:
                if section == "required":
                    raise ConfigError(f"{label} is missing; give it a value or a link")
                continue
            value = given[name]
            if is_link(value):
                values[name] = _linked(label, value, results)
            else:
                values[name] = _widget(label, value, spec)
    for name, wanted in declared.get("hidden", {}).items():
        values[name] = {"UNIQUE_ID": node, "PROMPT": graph}.get(wanted)
    return values


def _linked(label: str, link: list[Any], results: Mapping[str, tuple[Any, ...]]) -> Any:
    source, index = link
    if not 0 <= index < len(results[source]):
        raise ConfigError(
            f"{label} reads output {index} of node {source}, which has {len(results[source])}"
        )
    return results[source][index]


def _widget(label: str, value: Any, spec: Any) -> Any:
    """The value as the node's declaration has it: a choice, or a number within its bounds."""
    kind, options = spec[0], (spec[1] if len(spec) > 1 else {})
    if isinstance(kind, list | tuple):
        if value not in kind:
            raise ConfigError(f"{label} is {value!r}; choose {', '.join(map(str, kind)) or '-'}")
        return value
    if kind not in _NUMBERS:
        return value
    try:
        number = _NUMBERS[kind](value)
    except (TypeError, ValueError):
        raise ConfigError(f"{label} is {value!r}, which is no {kind}") from None
    for bound, wrong in (
        ("min", number < options.get("min", number)),
        ("max", number > options.get("max", number)),
    ):
        if wrong:
            raise ConfigError(f"{label} is {number}; its {bound}imum is {options[bound]}")
    return number

"""Visits to cached nodes: what a node does on a run that finds its result in the cache.

ComfyUI stages a cached output node all the same and says that it finished, before anything
downstream of it runs again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Shown = dict[str, list[Any]]
"""What a node shows, as its ``ui``."""

Action = Callable[[dict[str, Any]], Shown]
"""What to do when a node is found cached: from its inputs to what it should show."""

_actions: dict[str, Action] = {}


def register(class_type: str, action: Action) -> None:
    """Have every cached node of ``class_type`` visited with ``action``."""
    _actions[class_type] = action


def forget() -> None:
    """Visit no node any more."""
    _actions.clear()


def visit(executor: Any, registry: Any, node: str, prompt_id: str) -> None:
    """Do the cached node's action, if its class has one, and show what it gives."""
    found = registry.dynprompt.get_node(node)
    action = _actions.get(found["class_type"])
    if action is None:
        return
    inputs = {name: value for name, value in found["inputs"].items() if not _is_link(value)}
    inputs["unique_id"] = node  # as ComfyUI names it to a node that runs
    _show(executor, registry, node, prompt_id, action(inputs))


def outputs_of(caches: Any, node: str) -> list[Any] | None:
    """A node's outputs as the cache keeps them, a list of values each; ``None`` if it has none."""
    if not getattr(caches.outputs, "initialized", True):
        return None  # it was emptied, and no prompt has run since
    if hasattr(caches.outputs, "get_local"):
        entry = caches.outputs.get_local(node)
        return None if entry is None else entry.outputs
    found = caches.outputs.get(node)
    return None if found is None else list(found)


def _is_link(value: Any) -> bool:
    return isinstance(value, list)


def _show(executor: Any, registry: Any, node: str, prompt_id: str, shown: Shown) -> None:
    """Replace what the cache kept for the node to show, and send it to whoever watches."""
    if executor is None:
        return
    entry = _cached_ui(executor.caches, node)
    if entry is not None:
        entry.update(shown)
    server = executor.server
    if server.client_id is not None:
        message = {
            "node": node,
            "display_node": registry.dynprompt.get_display_node_id(node),
            "output": entry if entry is not None else shown,
            "prompt_id": prompt_id,
        }
        server.send_sync("executed", message, server.client_id)


def _cached_ui(caches: Any, node: str) -> dict[str, Any] | None:
    """The cached UI output of a node, to write to; where it is kept changed between versions."""
    if hasattr(caches, "ui"):
        kept = caches.ui.get(node)
    elif hasattr(caches.outputs, "get_local"):
        kept = getattr(caches.outputs.get_local(node), "ui", None)
    else:
        return None
    output = kept.get("output") if isinstance(kept, dict) else None
    return output if isinstance(output, dict) else None

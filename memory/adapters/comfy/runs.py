"""What a graph will have a node's models do: size, batch and steps, read before it runs.

From a node that gives out models the links are followed to what samples with them, and from there
back to the node that says how large the image is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ...planner.work import Work

_BACK = 64
"""Nodes walked back from a sampler to the one that sets the size."""
_FOUR_CHANNELS = "EmptyLatentImage"
_STEPS, _CFG = 20, 7.0


@dataclass(frozen=True)
class Run:
    """What is asked for; ``channels`` of the latents as they are made, ``None`` = the model's."""

    work: Work
    channels: int | None = None


def run_of(graph: Any, node: str) -> Run | None:
    """The largest run that models from ``node`` are given; ``None`` where it is not told.

    Args:
        graph: ComfyUI's ``DynamicPrompt``.
    """
    found = [_sampling(graph, sampler) for sampler in _downstream(graph, node)]
    runs = [run for run in found if run is not None]
    return max(
        runs, key=lambda run: run.work.batch * run.work.width * run.work.height, default=None
    )


def graph() -> Any:
    """ComfyUI's ``DynamicPrompt`` that is running, is about to, or ran last."""
    from comfy_execution.progress import get_progress_state

    return getattr(get_progress_state(), "dynprompt", None)


def name(graph: Any) -> str | None:
    """A name for all that a graph says; what ComfyUI notes in it meanwhile left out."""
    if graph is None:
        return None
    said = {
        node: {key: value for key, value in found.items() if key in ("class_type", "inputs")}
        for node, found in graph.get_original_prompt().items()
    }
    text = json.dumps(said, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def current(node: str | None) -> Run | None:
    """As ``run_of``, in that graph."""
    found = graph()
    if found is None or node is None or not found.has_node(node):
        return None
    return run_of(found, node)


def _downstream(graph: Any, node: str) -> list[str]:
    """Nodes that something of ``node`` reaches."""
    users: dict[str, list[str]] = {}
    for one in graph.all_node_ids():
        for source in _links(graph, one).values():
            users.setdefault(source, []).append(one)
    found: list[str] = []
    todo = [node]
    while todo:
        for user in users.get(todo.pop(), ()):
            if user not in found:
                found.append(user)
                todo.append(user)
    return found


def _sampling(graph: Any, node: str) -> Run | None:
    """The run of a node that has a latent to work on; ``None`` of any other."""
    back = _links(graph, node)
    source = back.get("latent_image")
    if source is None:
        return None
    given = graph.get_node(node)["inputs"]
    for _ in range(_BACK):
        if not graph.has_node(source):
            return None
        inputs, links = graph.get_node(source)["inputs"], _links(graph, source)
        if {"width", "height"} <= set(inputs):
            return _of_size(graph.get_node(source), given)
        onward = links.get("latent_image") or links.get("samples")
        if onward is None:
            return None
        source = onward
    return None


def _of_size(latent: dict[str, Any], sampler: dict[str, Any]) -> Run | None:
    inputs = latent["inputs"]
    sizes = [inputs["width"], inputs["height"], inputs.get("batch_size", 1)]
    frames = inputs.get("length", 1)
    if not all(type(size) is int and size > 0 for size in (*sizes, frames)):
        return None  # another node says so
    steps, cfg = sampler.get("steps", _STEPS), sampler.get("cfg", _CFG)
    try:
        work = Work(
            sizes[0],
            sizes[1],
            batch=sizes[2],
            steps=steps if type(steps) is int and steps > 0 else _STEPS,
            guided=not (isinstance(cfg, (int, float)) and cfg == 1.0),
            frames=frames,
        )
    except ValueError:
        return None  # no image of that size can be planned
    return Run(work, 4 if latent["class_type"] == _FOUR_CHANNELS else None)


def _links(graph: Any, node: str) -> dict[str, str]:
    """Linked inputs of a node, and the node each comes from."""
    return {
        name: str(value[0])
        for name, value in graph.get_node(node)["inputs"].items()
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
    }

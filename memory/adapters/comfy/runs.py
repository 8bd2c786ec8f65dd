"""What a graph will have a node's models do: size, batch and steps, read before it runs.

From a node that gives out models the links are followed to what samples with them, and from there
back to the node that says how large the image is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ...planner.api_graph import Graph, links, well_formed
from ...planner.latents import size_of
from ...planner.work import Work
from .images import image_size

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
    nodes = {it: graph.get_node(it) for it in graph.all_node_ids()}
    nodes = {it: found for it, found in nodes.items() if well_formed(found)}
    found = [_sampling(nodes, sampler) for sampler in _downstream(nodes, node)]
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


def _downstream(graph: Graph, node: str) -> list[str]:
    """Nodes that something of ``node`` reaches."""
    users: dict[str, list[str]] = {}
    for one, said in graph.items():
        for source, _ in links(said).values():
            users.setdefault(source, []).append(one)
    found: list[str] = []
    todo = [node]
    while todo:
        for user in users.get(todo.pop(), ()):
            if user not in found:
                found.append(user)
                todo.append(user)
    return found


def _sampling(graph: Graph, node: str) -> Run | None:
    """The run of a node that has a latent to work on; ``None`` of any other."""
    source = links(graph[node]).get("latent_image")
    size = None if source is None else size_of(graph, source, image=image_size)
    if size is None:
        return None
    given = graph[node]["inputs"]
    steps, cfg = given.get("steps", _STEPS), given.get("cfg", _CFG)
    try:
        work = Work(
            size.width,
            size.height,
            batch=size.batch,
            steps=steps if type(steps) is int and steps > 0 else _STEPS,
            guided=not (isinstance(cfg, (int, float)) and cfg == 1.0),
            frames=size.frames,
        )
    except ValueError:
        return None  # no image of that size can be planned
    return Run(work, size.channels)

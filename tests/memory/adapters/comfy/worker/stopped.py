"""Prompts that are interrupted: before and after every node, at every step, within a model."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
from executed import (
    WATCH,
    done,
    failure,
    fresh,
    held,
    interrupt,
    interrupt_now,
    run,
    runner,
)
from lowtide.memory.adapters.comfy import executor as followed
from torch.nn.modules.module import register_module_forward_pre_hook
from workflows import ALL, pipelines_in

Stop = tuple[str, Any]
EVERY = 6
"""Of so many stops, one is followed by the whole prompt."""


def everywhere(
    workflow: str, level: str, cleanup: str, within: int, pipelines: str, pipeline: str
) -> list[dict[str, Any]]:
    """One prompt for each place to stop it, and what was held at once after it.

    ``within``: how many places inside the models' own calls, spread over the whole prompt.
    """
    pipelines_in(pipelines, pipeline)
    graph = ALL[workflow](level=level, cleanup=cleanup)
    fresh()
    followed.install()
    calls = _counted(lambda: done(runner(), graph))
    ran, steps = list(dict.fromkeys(WATCH.calls)), list(WATCH.steps)
    stops: list[Stop] = [(when, node) for node in ran for when in ("before", "after")]
    stops += [("step", step) for step in steps]
    stops += [("within", 1 + calls * part // within) for part in range(within)]
    found = []
    for number, stop in enumerate(stops):
        fresh()
        followed.install()
        one = runner()
        _stop_at(stop)
        finished = run(one, graph)
        left, timeline = held(), followed.timelines()[-1]
        said = one.status_messages[-1][0]
        WATCH.__init__()
        _unload()
        found.append(
            {
                "stop": stop,
                "finished": finished,
                "said": said if said == "execution_interrupted" else failure(one),
                "left": left,
                "unloaded": held()[0],
                "status": timeline["status"],
                "nodes": [(it["node"], it["status"]) for it in timeline["nodes"]],
            }
        )
        if number % EVERY == 0:  # the queue goes on
            followed.install()
            done(one, graph)
            found[-1]["next"] = held()
    fresh()
    return found


def _unload() -> None:
    """ComfyUI's own way, without a collection."""
    for device in {entry.device for entry in mm.current_loaded_models}:
        mm.free_memory(1e30, device)


def _stop_at(stop: Stop) -> None:
    when, where = stop
    if when == "before":
        WATCH.before = lambda node: interrupt() if node == where else None
    elif when == "after":
        WATCH.after = lambda node: interrupt_now() if node == where else None
    elif when == "step":
        node, step = where
        WATCH.stepped = lambda it, value: interrupt() if (it, value) == (node, step) else None
    else:
        _call_at(where, interrupt)


def _counted(action: Any) -> int:
    """How often a module is called during ``action``."""
    count = [0]

    def note(*_: Any) -> None:
        count[0] += 1

    handle = register_module_forward_pre_hook(note)
    try:
        action()
    finally:
        handle.remove()
    return count[0]


def _call_at(number: int, action: Any) -> None:
    count = [0]

    def note(*_: Any) -> None:
        count[0] += 1
        if count[0] == number:
            handle.remove()
            action()

    handle = register_module_forward_pre_hook(note)

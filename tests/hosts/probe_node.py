"""Test-only custom node: the accelerator's counters and what ComfyUI is doing, over HTTP.

Copied into the tested server's ``custom_nodes``; it adds no node and wraps nothing.
"""

from __future__ import annotations

import sys

import comfy.model_management as management
from aiohttp import web
from comfy_execution.progress import NodeState, get_progress_state
from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, type] = {}


def _accelerator():
    """The handle that the simulated accelerator's sitecustomize left; None with ``--cpu``."""
    return getattr(sys, "lowtide_sim_handle", None)


def _idle() -> bool:
    """Whether the worker sleeps with nothing queued and no flag of ``/free`` left to serve."""
    queue = PromptServer.instance.prompt_queue
    with queue.mutex:
        busy = queue.queue or queue.currently_running or queue.flags
        return not busy and bool(queue.not_empty._waiters)


def _progress() -> dict[str, list[float]]:
    """Node id -> [value, max] of the nodes that are running."""
    nodes = dict(get_progress_state().nodes)
    return {
        node_id: [state["value"], state["max"]]
        for node_id, state in nodes.items()
        if state["state"] == NodeState.Running
    }


def _models() -> list[dict[str, object]]:
    return [
        {
            "model": type(loaded.model.model).__name__,
            "size": int(loaded.model.model_size()),
            "resident": int(loaded.model.loaded_size()),
        }
        for loaded in list(management.current_loaded_models)
        if loaded.model is not None
    ]


def _figures() -> dict[str, object]:
    figures: dict[str, object] = {"idle": _idle(), "progress": _progress(), "models": _models()}
    accelerator = _accelerator()
    if accelerator is not None:
        for name in ("allocated", "reserved", "peak_allocated", "peak_reserved", "peak_op"):
            figures[name] = getattr(accelerator, name)
        figures.update(
            device=str(accelerator.device),
            capacity=accelerator.capacity,
            traffic=dict(accelerator.counters()),
        )
    return figures


@PromptServer.instance.routes.get("/lowtide-test/counters")
async def counters(request: web.Request) -> web.Response:
    return web.json_response(_figures())


@PromptServer.instance.routes.post("/lowtide-test/counters")
async def reset(request: web.Request) -> web.Response:
    """Resets peaks and traffic; answers with the figures from just before."""
    figures = _figures()
    accelerator = _accelerator()
    if accelerator is not None:
        accelerator.reset_peaks()
        accelerator.reset_counters()
    return web.json_response(figures)


@PromptServer.instance.routes.post("/lowtide-test/fault")
async def fault(request: web.Request) -> web.Response:
    """Make the allocation ``k`` from now fail, and find ``capacity`` bytes from then on.

    An empty object forgets faults; ``capacity`` without ``k`` is the device's from now on.
    """
    asked = await request.json()
    accelerator = _accelerator()
    accelerator.clear_fault()
    if "k" in asked:
        accelerator.fail_allocation(asked["k"])
        if "capacity" in asked:
            accelerator.shrink_at(asked["k"], asked["capacity"])
    elif "capacity" in asked:
        accelerator(capacity=asked["capacity"])
    return web.json_response(_figures())

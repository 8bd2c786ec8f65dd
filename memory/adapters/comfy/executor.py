"""Lowtide between the nodes of a running ComfyUI.

One method of ComfyUI is wrapped, ``PromptExecutor.add_message``, on first use and never at
import. From there a progress handler is registered with every prompt: it sees nodes start and
finish, cached ones too. Nothing may escape from here: an exception in a handler would end the
thread that runs all prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ... import backend
from ...cleanup import PRESSURE_SHARE
from ...peaks import PeakWindow
from .models import leave_device
from .patchers import residency_of

logger = logging.getLogger("lowtide")

Action = Callable[[dict[str, Any]], str]
"""What to do when a node is found cached: from its inputs to the text it should show."""

_HANDLER = "lowtide"
_ENDS = ("execution_success", "execution_error", "execution_interrupted")

_actions: dict[str, Action] = {}
_state: dict[str, Any] = {"original": None, "executor": None, "handler": None, "window": None}


def install() -> None:
    """Begin to follow ComfyUI's prompts, the one that is running included. Idempotent."""
    if _state["original"] is not None:
        return
    import execution

    original = execution.PromptExecutor.add_message

    def add_message(self: Any, event: Any, *args: Any, **kwargs: Any) -> Any:
        _guarded(lambda: _on_message(self, event))
        return original(self, event, *args, **kwargs)

    execution.PromptExecutor.add_message = add_message
    _state["original"] = original
    _guarded(_follow)


def uninstall() -> None:
    """Put ComfyUI's method back and forget every action."""
    original, _state["original"] = _state["original"], None
    if original is not None:
        import execution

        execution.PromptExecutor.add_message = original
    _close_window()
    _state["executor"] = _state["handler"] = None
    _actions.clear()


def revisit(node_id: str, class_type: str, action: Action) -> None:
    """Run ``action`` on every later run that finds a node of ``class_type`` cached.

    Called by the node ``node_id`` while it runs, so that this run is not counted as a visit.
    """
    install()
    _actions[class_type] = action
    handler = _state["handler"]
    if handler is not None:
        handler.ran.add(node_id)


def peak() -> int | None:
    """Highest bytes allocated on ComfyUI's device since the current prompt began.

    In the prompt during which Lowtide came in, since ComfyUI started.
    """
    import comfy.model_management as mm

    window: PeakWindow | None = _state["window"]
    if window is not None:
        return window.read().allocated
    return backend.peak_allocated(backend.device_of(mm.get_torch_device()))


def _guarded(step: Callable[[], None]) -> None:
    try:
        step()
    except BaseException:  # whatever escapes here kills ComfyUI's worker
        logger.exception("Lowtide could not finish its work between two nodes")


def _on_message(executor: Any, event: str) -> None:
    if event == "execution_start":
        _open_window()
    elif event == "execution_cached":
        _state["executor"] = executor
        _follow()
    elif event in _ENDS:
        _state["executor"] = _state["handler"] = None
        _release_after_run()
        _close_window()


def _follow() -> None:
    """Register a handler with the prompt ComfyUI has just begun."""
    from comfy_execution.progress import ProgressHandler, add_progress_handler

    class Handler(ProgressHandler):
        """Notes which nodes ran; visits those that were cached."""

        def __init__(self) -> None:
            super().__init__(_HANDLER)
            self.ran: set[str] = set()
            self.registry: Any = None

        def set_registry(self, registry: Any) -> None:
            self.registry = registry

        def start_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
            self.ran.add(node_id)

        def finish_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
            if node_id not in self.ran and _actions:
                _guarded(lambda: _visit(self.registry, node_id, prompt_id))

    handler = Handler()
    add_progress_handler(handler)
    _state["handler"] = handler


def _visit(registry: Any, node_id: str, prompt_id: str) -> None:
    node = registry.dynprompt.get_node(node_id)
    action = _actions.get(node["class_type"])
    if action is None:
        return
    inputs = {name: value for name, value in node["inputs"].items() if not _is_link(value)}
    _show(registry, node_id, prompt_id, action(inputs))


def _is_link(value: Any) -> bool:
    return isinstance(value, list)


def _show(registry: Any, node_id: str, prompt_id: str, text: str) -> None:
    """Replace the text the cache kept for the node, and send it to whoever watches."""
    executor = _state["executor"]
    if executor is None:
        return
    entry = _cached_ui(executor.caches, node_id)
    if entry is not None:
        entry["text"] = [text]
    server = executor.server
    if server.client_id is not None:
        message = {
            "node": node_id,
            "display_node": registry.dynprompt.get_display_node_id(node_id),
            "output": entry if entry is not None else {"text": [text]},
            "prompt_id": prompt_id,
        }
        server.send_sync("executed", message, server.client_id)


def _cached_ui(caches: Any, node_id: str) -> dict[str, Any] | None:
    """The cached UI output of a node, to write to; where it is kept changed between versions."""
    if hasattr(caches, "ui"):
        kept = caches.ui.get(node_id)
    elif hasattr(caches.outputs, "get_local"):
        kept = getattr(caches.outputs.get_local(node_id), "ui", None)
    else:
        return None
    output = kept.get("output") if isinstance(kept, dict) else None
    return output if isinstance(output, dict) else None


def _release_after_run() -> None:
    """The cleanup policy of the models that carry one."""
    import comfy.model_management as mm

    for entry in list(mm.current_loaded_models):
        patcher = entry.model
        residency = None if patcher is None else residency_of(patcher)
        if residency is None:
            continue
        if residency.cleanup == "always" or (
            residency.cleanup == "pressure" and _is_short(patcher.load_device)
        ):
            leave_device(patcher)


def _is_short(device: Any) -> bool:
    info = backend.mem_get_info(backend.device_of(device))
    return info is None or info[0] < PRESSURE_SHARE * info[1]


def _open_window() -> None:
    import comfy.model_management as mm

    _close_window()
    device = backend.device_of(mm.get_torch_device())
    if backend.records_peaks(device):
        _state["window"] = PeakWindow(device)


def _close_window() -> None:
    window, _state["window"] = _state["window"], None
    if window is not None:
        window.close()

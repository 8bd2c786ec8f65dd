"""Lowtide between the nodes of a running ComfyUI.

One method of ComfyUI is wrapped, ``PromptExecutor.add_message``, on first use and never at
import. From there a progress handler is registered with every prompt: it sees nodes start, go on
and finish, cached ones too. Nothing may escape from here: an exception in a handler would end the
thread that runs all prompts.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ... import backend
from ...rescue import Rung
from ...timeline import DONE, FAILED, INTERRUPTED, Attempt, Release, Timelines
from . import between, rescue, visits
from .graph import needed_patchers
from .spans import Recorder

logger = logging.getLogger("lowtide")

_HANDLER = "lowtide"
_ENDS = {
    "execution_success": DONE,
    "execution_error": FAILED,
    "execution_interrupted": INTERRUPTED,
}


@dataclass
class _Prompt:
    """The prompt that is running."""

    executor: Any
    registry: Any = None
    recorder: Recorder | None = None
    done: set[str] = field(default_factory=set)
    """Nodes whose outputs are known: cached when the prompt began, or finished since."""
    ran: set[str] = field(default_factory=set)
    always: bool = False
    """Whether a model of this prompt has the policy ``always``."""
    rescue: bool = False


_state: dict[str, Any] = {"original": None, "prompt": None}
_timelines = Timelines()
_SELECTOR = "LowtideMemoryLevelSelector"


def install() -> None:
    """Begin to follow ComfyUI's prompts, the one that is running included. Idempotent.

    For nodes to call while they run, from the thread that runs the prompts.
    """
    if _wrap():
        _guarded(_follow_running)


def install_quietly() -> None:
    """Begin with the next prompt; from any thread, and nothing escapes to the caller."""
    _guarded(_wrap)


def _wrap() -> bool:
    """Wrap ComfyUI's method; False if it is wrapped already."""
    if _state["original"] is not None:
        return False
    import execution

    original = execution.PromptExecutor.add_message

    def add_message(self: Any, event: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
        _guarded(lambda: _on_message(self, event, data))
        return original(self, event, data, *args, **kwargs)

    execution.PromptExecutor.add_message = add_message
    _state["original"] = original
    rescue.install(_wants_rescue, _tried)
    return True


def uninstall() -> None:
    """Put ComfyUI's method back and forget every action and every run."""
    original, _state["original"] = _state["original"], None
    if original is not None:
        import execution

        execution.PromptExecutor.add_message = original
    prompt, _state["prompt"] = _state["prompt"], None
    if prompt is not None and prompt.recorder is not None:
        prompt.recorder.end(INTERRUPTED)
    rescue.uninstall()
    visits.forget()
    _timelines.clear()


def revisit(node_id: str, class_type: str, action: visits.Action) -> None:
    """Run ``action`` on every later run that finds a node of ``class_type`` cached.

    Called by the node ``node_id`` while it runs, so that this run is not counted as a visit.
    """
    install()
    visits.register(class_type, action)
    prompt = _state["prompt"]
    if prompt is not None:
        prompt.ran.add(node_id)


def follow_policy(policy: str) -> None:
    """A model of the running prompt has this cleanup policy."""
    if policy == "off":
        return
    install()
    prompt = _state["prompt"]
    if prompt is not None and policy == "always":
        prompt.always = True


def timelines() -> list[dict[str, Any]]:
    """The last runs, node by node, as plain JSON values; the latest last."""
    return _timelines.all()


def peak() -> int | None:
    """Highest bytes allocated on ComfyUI's device since the current prompt began.

    In the prompt during which Lowtide came in, since ComfyUI started.
    """
    import comfy.model_management as mm

    prompt: _Prompt | None = _state["prompt"]
    if prompt is not None and prompt.recorder is not None and prompt.executor is not None:
        return prompt.recorder.peak().allocated
    return backend.peak_allocated(backend.device_of(mm.get_torch_device()))


def _guarded(step: Callable[[], object]) -> None:
    try:
        step()
    except BaseException:  # whatever escapes here kills ComfyUI's worker
        logger.exception("Lowtide could not finish its work between two nodes")


def _on_message(executor: Any, event: str, data: dict[str, Any]) -> None:
    if event == "execution_cached":
        _follow(executor, tuple(data.get("nodes", ())))
    elif event in _ENDS:
        prompt, _state["prompt"] = _state["prompt"], None
        if prompt is None:
            return
        prompt.always = prompt.always or between.any_has_policy("always")
        try:
            between.after_run(_noting(prompt), always=prompt.always)
        finally:
            _end(prompt, _ENDS[event], data.get("node_id"))


def _end(prompt: _Prompt, status: str, node: str | None) -> None:
    recorder, prompt.registry = prompt.recorder, None
    if recorder is None:
        return
    if node is not None:
        recorder.finish(node, status)
    recorder.end(status)


@functools.cache
def _handler_class() -> Any:
    """Made once: a class is a cycle, and one per prompt would keep its prompt until collected."""
    from comfy_execution.progress import ProgressHandler

    class Handler(ProgressHandler):
        """Passes on what the prompt's nodes do; knows its prompt by the module's state only."""

        def __init__(self) -> None:
            super().__init__(_HANDLER)

        def start_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
            _guarded(lambda: _started(node_id))

        def update_handler(self, node_id: str, *args: Any, **kwargs: Any) -> None:
            _guarded(lambda: _stepped(node_id))

        def finish_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
            _guarded(lambda: _finished(node_id, prompt_id))

    return Handler


def _follow(executor: Any, cached: tuple[str, ...]) -> None:
    """Register a handler with the prompt ComfyUI has just begun."""
    import comfy.model_management as mm
    from comfy_execution.progress import add_progress_handler, get_progress_state

    before = _state["prompt"]
    if before is not None and before.recorder is not None:
        before.recorder.end(INTERRUPTED)
    add_progress_handler(_handler_class()())
    prompt = _Prompt(executor, get_progress_state(), done=set(cached))
    graph = prompt.registry.dynprompt
    device = backend.device_of(mm.get_torch_device())
    prompt.recorder = Recorder(_timelines, prompt.registry.prompt_id, device, graph, cached)
    prompt.always = between.any_has_policy("always")
    prompt.rescue = _asks_for_rescue(graph)
    _state["prompt"] = prompt


def _follow_running() -> None:
    from comfy_execution.progress import NodeState, get_progress_state

    nodes = get_progress_state().nodes.values()
    if any(node["state"] == NodeState.Running for node in nodes):
        _follow(None, ())


def _asks_for_rescue(graph: Any) -> bool:
    """Whether a Memory Level Selector of the graph says so; one that is not asked says yes."""
    inputs = [
        node["inputs"]
        for node in map(graph.get_node, graph.all_node_ids())
        if node["class_type"] == _SELECTOR
    ]
    return bool(inputs) and all(found.get("rescue", "on") != "off" for found in inputs)


def _wants_rescue() -> bool:
    prompt: _Prompt | None = _state["prompt"]
    return prompt is not None and prompt.rescue


def _tried(node: str, rung: Rung, outcome: str, seconds: float) -> None:
    def note() -> None:
        logger.warning("node %s: %s", node, rescue.describe(rung, outcome, seconds))
        prompt: _Prompt | None = _state["prompt"]
        if prompt is not None and prompt.recorder is not None:
            attempt = Attempt(node, rung.name, outcome, seconds)
            _timelines.add(prompt.recorder.timeline, attempt)

    _guarded(note)


def _started(node: str) -> None:
    prompt: _Prompt | None = _state["prompt"]
    if prompt is not None:
        prompt.ran.add(node)
        if prompt.recorder is not None:
            prompt.recorder.start(node)


def _stepped(node: str) -> None:
    prompt: _Prompt | None = _state["prompt"]
    if prompt is not None and prompt.recorder is not None:
        prompt.recorder.step(node)


def _finished(node: str, prompt_id: str) -> None:
    prompt: _Prompt | None = _state["prompt"]
    if prompt is None:
        return
    prompt.done.add(node)
    if node not in prompt.ran:
        visits.visit(prompt.executor, prompt.registry, node, prompt_id)
        return
    if prompt.recorder is not None:
        prompt.recorder.finish(node)
    prompt.always = prompt.always or between.any_has_policy("always")
    if prompt.executor is not None:
        between.after_node(node, lambda: _needed(prompt), _noting(prompt))


def _needed(prompt: _Prompt) -> list[Any] | None:
    caches = prompt.executor.caches
    return needed_patchers(
        prompt.registry.dynprompt, prompt.done, lambda node: visits.outputs_of(caches, node)
    )


def _noting(prompt: _Prompt) -> between.Note:
    def note(release: Release) -> None:
        if prompt.recorder is not None:
            _timelines.add(prompt.recorder.timeline, release)

    return note

"""Lowtide between the nodes of a running ComfyUI.

One method of ComfyUI is wrapped, ``PromptExecutor.add_message``, on first use and never at
import. From there a progress handler is registered with every prompt: it sees nodes start, go on
and finish, cached ones too. Nothing may escape from here: an exception in a handler would end the
thread that runs all prompts.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

from ... import backend, override, verified
from ...levels import MemoryOptimizationConfig
from ...timeline import DONE, FAILED, INTERRUPTED, Attempt, Listener, Release, Timelines
from . import asked, between, deferred, host_copies, learned, moved, plan_choice, rescue, visits
from .graph import moment_of
from .listening import listen
from .prompt import Prompt
from .spans import Recorder

logger = logging.getLogger("lowtide")

_ENDS = {
    "execution_success": DONE,
    "execution_error": FAILED,
    "execution_interrupted": INTERRUPTED,
}


_state: dict[str, Any] = {"original": None, "prompt": None, "executor": lambda: None}
_lock = threading.Lock()
_timelines = Timelines()


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
    """Wrap ComfyUI's method; False if it is wrapped already.

    A prompt is checked in the server's thread while another one runs in its own.
    """
    with _lock:
        return _state["original"] is None and _wrap_once()


def _wrap_once() -> bool:
    import execution

    original = execution.PromptExecutor.add_message

    def add_message(self: Any, event: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
        _guarded(lambda: _on_message(self, event, data))
        return original(self, event, data, *args, **kwargs)

    execution.PromptExecutor.add_message = add_message
    _state["original"] = original
    moved.install()
    host_copies.install(_leaves_soon)
    rescue.install(rescue.Rules(_wants_rescue, _agreed, _policy, _tried))
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
    _state["executor"] = lambda: None
    plan_choice.forget()
    moved.uninstall()
    host_copies.uninstall()
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


def follow_policy(config: MemoryOptimizationConfig) -> None:
    """A node of the running prompt applies this configuration: its cleanups are due from now on."""
    if config.cleanup == "off":
        return
    install()
    prompt: Prompt | None = _state["prompt"]
    if prompt is not None:
        prompt.follow(asked.stronger(prompt.config, config))


def caches() -> Any:
    """ComfyUI's caches of the prompt that runs, or ran last; ``None`` where none was followed."""
    found = _state["executor"]()
    return None if found is None else found.caches


def running() -> Prompt | None:
    """The prompt that runs, if it is followed."""
    found: Prompt | None = _state["prompt"]
    return found


def timelines() -> list[dict[str, Any]]:
    """The last runs, node by node, as plain JSON values; the latest last."""
    return _timelines.all()


def subscribe(listener: Listener) -> None:
    """Have ``listener`` told of runs, as ``Timelines.subscribe`` does; follows none by itself."""
    _timelines.subscribe(listener)


def peak() -> int | None:
    """Highest bytes allocated on ComfyUI's device since the current prompt began.

    In the prompt during which Lowtide came in, since ComfyUI started.
    """
    import comfy.model_management as mm

    prompt: Prompt | None = _state["prompt"]
    if prompt is not None and prompt.recorder is not None and prompt.executor is not None:
        return prompt.recorder.peak().allocated
    return backend.peak_allocated(backend.device_of(mm.get_torch_device()))


def _guarded(step: Callable[[], object]) -> None:
    try:
        step()
    except BaseException:  # whatever escapes here kills ComfyUI's worker
        logger.exception("Lowtide could not finish its work between two nodes")


def _on_message(executor: Any, event: str, data: dict[str, Any]) -> None:
    if event == "execution_start":
        override.begin_run()
        verified.begin()
        plan_choice.before_prompt()
    elif event == "execution_cached":
        _state["executor"] = weakref.ref(executor)
        _follow(executor, tuple(data.get("nodes", ())))
    elif event in _ENDS:
        prompt, _state["prompt"] = _state["prompt"], None
        if prompt is None:
            plan_choice.after_prompt(False)
            return
        prompt.always = prompt.always or between.any_has_policy("always")
        try:
            between.after_run(_noting(prompt), always=prompt.always, config=prompt.config)
        finally:
            prompt.end(_ENDS[event], data)
            plan_choice.after_prompt(event == "execution_success")


def _follow(executor: Any, cached: tuple[str, ...]) -> None:
    """Register a handler with the prompt ComfyUI has just begun."""
    import comfy.model_management as mm

    before = _state["prompt"]
    if before is not None and before.recorder is not None:
        before.recorder.end(INTERRUPTED)
    prompt = Prompt(executor, done=set(cached))
    prompt.registry = listen(_guarded, _started, _stepped, _finished)
    graph = prompt.registry.dynprompt
    device = backend.device_of(mm.get_torch_device())
    run, steps = prompt.registry.prompt_id, asked.step_peaks(graph)
    prompt.recorder = Recorder(_timelines, run, device, graph, cached, steps)
    prompt.always = between.any_has_policy("always")
    prompt.asks(graph)
    _state["prompt"] = prompt


def _follow_running() -> None:
    from comfy_execution.progress import NodeState, get_progress_state

    nodes = get_progress_state().nodes.values()
    if any(node["state"] == NodeState.Running for node in nodes):
        _follow(None, ())


def _leaves_soon(patcher: Any) -> bool:
    prompt: Prompt | None = _state["prompt"]
    return prompt is not None and prompt.leaves_soon(patcher)


def _wants_rescue() -> bool:
    prompt: Prompt | None = _state["prompt"]
    return prompt is not None and prompt.rescue != "off"


def _agreed(node: str) -> bool:
    prompt: Prompt | None = _state["prompt"]
    try:
        return prompt is not None and prompt.agreed(node)
    except Exception:
        logger.exception("Lowtide could not ask whether node %s may run again", node)
        return False


def _policy() -> str:
    prompt: Prompt | None = _state["prompt"]
    return "off" if prompt is None else prompt.policy


def _tried(attempt: Attempt) -> None:
    def note() -> None:
        logger.warning("node %s: %s", attempt.node, rescue.describe(attempt))
        prompt: Prompt | None = _state["prompt"]
        if prompt is not None and prompt.recorder is not None:
            _timelines.add(prompt.recorder.timeline, attempt)

    _guarded(note)


def _started(node: str) -> None:
    prompt: Prompt | None = _state["prompt"]
    if prompt is not None:
        prompt.begins(node)
        if prompt.recorder is not None:
            prompt.recorder.start(node)


def _stepped(node: str) -> None:
    prompt: Prompt | None = _state["prompt"]
    if prompt is None:
        return
    if prompt.recorder is not None:
        prompt.recorder.step(node)
    between.at("after_step", node, prompt.config, _noting(prompt))


def _finished(node: str, prompt_id: str) -> None:
    prompt: Prompt | None = _state["prompt"]
    if prompt is None:
        return
    prompt.ends(node)
    if node not in prompt.ran:
        visits.visit(prompt.executor, prompt.registry, node, prompt_id)
        return
    if prompt.recorder is not None:
        prompt.recorder.finish(node)
    learned.take(prompt, node)
    prompt.always = prompt.always or between.any_has_policy("always")
    if prompt.executor is not None:
        _clean_after(node, prompt)
        deferred.between_nodes()


def _clean_after(node: str, prompt: Prompt) -> None:
    graph, caches, config = prompt.registry.dynprompt, prompt.executor.caches, prompt.config

    def outputs(one: str) -> list[Any] | None:
        return visits.outputs_of(caches, one)

    note = _noting(prompt)
    between.after_node(node, prompt.needed, note, always=prompt.always, config=config)
    moment = None if config.cleanup == "off" else moment_of(graph, node, outputs)
    if moment is not None:
        between.at(moment, node, config, note)


def _noting(prompt: Prompt) -> between.Note:
    def note(release: Release) -> None:
        if prompt.recorder is not None:
            _timelines.add(prompt.recorder.timeline, release)

    return note

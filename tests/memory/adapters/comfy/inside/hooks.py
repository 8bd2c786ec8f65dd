"""Cases: Lowtide between the nodes of ComfyUI's real executor."""

from __future__ import annotations

import inspect
import logging
import sys
from types import SimpleNamespace

import comfy.model_management as mm
import execution
from lowtide.memory import session
from lowtide.memory.adapters.comfy import between, executor, visits
from lowtide.memory.adapters.comfy.patchers import marked
from lowtide.memory.adapters.comfy.residency import Residency
from small import load, patcher, unload

import nodes

ADD_MESSAGE = execution.PromptExecutor.add_message
LOG: list[tuple[object, ...]] = []


class AnyType(str):
    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


class Source:
    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"x": ("INT", {"default": 0})}}

    def run(self, x):
        LOG.append(("source", x))
        return (x,)


class Cleanup:
    OUTPUT_NODE = True
    RETURN_TYPES = (AnyType("*"), "STRING")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"anything": (AnyType("*"), {}), "target": ("STRING", {})},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def run(self, anything, target, unique_id=None):
        executor.revisit(unique_id, "Cleanup", visit)
        LOG.append(("cleanup", target))
        return {"ui": {"text": ["first"]}, "result": (anything, "first")}


class Sink:
    OUTPUT_NODE = True
    RETURN_TYPES = ()
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"a": ("INT", {}), "seed": ("INT", {"default": 0})}}

    def run(self, a, seed):
        LOG.append(("sink", a, seed))
        return {"ui": {"v": [a]}}


class Failing(Sink):
    def run(self, a, seed):
        raise RuntimeError("as planned")


class Interrupted(Sink):
    def run(self, a, seed):
        raise mm.InterruptProcessingException()


for kind in (Source, Cleanup, Sink, Failing, Interrupted):
    nodes.NODE_CLASS_MAPPINGS[kind.__name__] = kind


class Server:
    client_id = "someone"
    last_node_id = last_prompt_id = None
    sockets_metadata: dict[str, object] = {}

    def __init__(self) -> None:
        self.sent: list[tuple[str, object]] = []

    def send_sync(self, event, data, sid=None):
        self.sent.append((event, data))


def visit(inputs: dict[str, object]) -> str:
    LOG.append(("visit", inputs.get("target")))
    return {"text": ["again"]}


def kinds() -> list[object]:
    found = [execution.CacheType.CLASSIC]
    if hasattr(execution.CacheType, "RAM_PRESSURE"):
        found.append(execution.CacheType.RAM_PRESSURE)
    return found


def make(kind: object) -> execution.PromptExecutor:
    LOG.clear()
    takes = inspect.signature(execution.PromptExecutor.__init__).parameters
    more = {}
    if "cache_args" in takes:
        more["cache_args"] = {"lru": 0, "ram": 1.0, "ram_inactive": 1.0}
    return execution.PromptExecutor(Server(), cache_type=kind, **more)


def go(runner, sink="Sink", seed=1, target="vram", x=1):
    graph = {
        "1": {"class_type": "Source", "inputs": {"x": x}},
        "2": {"class_type": "Cleanup", "inputs": {"anything": ["1", 0], "target": target}},
        "3": {"class_type": sink, "inputs": {"a": ["2", 0], "seed": seed}},
    }
    LOG.clear()
    runner.server.sent.clear()
    runner.execute(graph, "prompt", {"client_id": "someone"}, ["2", "3"])
    return list(LOG)


def fresh() -> None:
    executor.uninstall()
    assert execution.PromptExecutor.add_message is ADD_MESSAGE


def case_nothing_is_wrapped_before_first_use() -> None:
    assert execution.PromptExecutor.add_message is ADD_MESSAGE
    executor.install()
    wrapped = execution.PromptExecutor.add_message
    executor.install()
    assert execution.PromptExecutor.add_message is wrapped is not ADD_MESSAGE
    fresh()


def case_a_cached_node_is_visited_before_what_is_downstream() -> None:
    for kind in kinds():
        runner = make(kind)
        assert go(runner, seed=1) == [("source", 1), ("cleanup", "vram"), ("sink", 1, 1)], kind
        assert go(runner, seed=2) == [("visit", "vram"), ("sink", 1, 2)], kind
        assert go(runner, seed=2) == [("visit", "vram")], kind
        assert go(runner, seed=2, x=5)[:2] == [("source", 5), ("cleanup", "vram")], kind
        fresh()


def case_what_is_downstream_stays_cached() -> None:
    for kind in kinds():
        runner = make(kind)
        go(runner)
        for _ in range(2):
            assert ("sink", 1, 1) not in go(runner), kind
        fresh()


def case_the_text_of_a_cached_node_is_renewed() -> None:
    for kind in kinds():
        runner = make(kind)
        go(runner)
        assert runner.history_result["outputs"]["2"]["text"] == ["first"]
        go(runner)
        assert runner.history_result["outputs"]["2"]["text"] == ["again"], kind
        shown = [data for event, data in runner.server.sent if event == "executed"]
        last = [data for data in shown if data["node"] == "2"][-1]
        assert last["output"]["text"] == ["again"]
        fresh()


def case_a_failing_visit_does_not_reach_the_worker() -> None:
    class Worse(BaseException):
        pass

    def fail(inputs):
        raise Worse("from a visit")

    logger = logging.getLogger("lowtide")
    seen: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = seen.append
    logger.addHandler(handler)
    try:
        for kind in kinds():
            runner = make(kind)
            go(runner)
            visits.register("Cleanup", fail)
            assert go(runner, seed=3) == [("sink", 1, 3)]
            assert runner.success
            fresh()
    finally:
        logger.removeHandler(handler)
    assert len(seen) == len(kinds())
    assert "Worse" in logging.Formatter().format(seen[0])


def case_runs_after_an_error_and_an_interrupt_are_followed() -> None:
    for kind in kinds():
        runner = make(kind)
        go(runner)
        for bad in ("Failing", "Interrupted"):
            assert go(runner, sink=bad) == [("visit", "vram")]
            assert not runner.success
        assert go(runner, seed=7) == [("visit", "vram"), ("sink", 1, 7)]
        fresh()


def case_the_policy_is_kept_however_a_run_ends() -> None:
    left: list[object] = []
    keep, loaded = between.leave_device, between._on_device
    between.leave_device = left.append
    try:
        for sink in ("Sink", "Failing", "Interrupted"):
            for cleanup, expected in (("always", True), ("off", False)):
                unload()
                left.clear()
                one = marked(patcher(), Residency(cleanup=cleanup))
                load(one)
                between._on_device = lambda one=one: [one]  # host and device are one here
                runner = make(kinds()[0])
                executor.install()
                go(runner, sink=sink)
                assert bool(left) is expected, (sink, cleanup)
                fresh()
    finally:
        between.leave_device, between._on_device = keep, loaded
        unload()


def case_pressure_looks_at_what_is_free() -> None:
    from lowtide.memory import backend

    info = backend.mem_get_info
    try:
        for free, short in ((10, True), (20, False)):
            backend.mem_get_info = lambda device, free=free: (free, 100)
            assert between.is_short("cpu") is short
    finally:
        backend.mem_get_info = info


def case_a_cleanup_of_ram_alone_unloads_no_model() -> None:
    """What ComfyUI's worker reads after a prompt: it unloads with the results unless told not."""
    keep = sys.modules.get("server")
    for targets, unloads in (
        (("ram",), False),
        (("both",), True),
        (("both", "ram"), True),
        (("ram", "both"), True),
    ):
        queue = execution.PromptQueue(SimpleNamespace())
        instance = SimpleNamespace(prompt_queue=queue)
        sys.modules["server"] = SimpleNamespace(PromptServer=SimpleNamespace(instance=instance))
        try:
            for target in targets:
                session.force_cleanup(target)
        finally:
            sys.modules.pop("server")
            if keep is not None:
                sys.modules["server"] = keep
        assert queue.get_flags() == {"unload_models": unloads, "free_memory": True}, targets

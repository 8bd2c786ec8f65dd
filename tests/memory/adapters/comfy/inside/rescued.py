"""Cases: a node that runs out of memory runs again with less, and nothing else does."""

from __future__ import annotations

import execution
import prompts
import torch
from lowtide.memory import backend
from lowtide.memory.adapters.comfy import executor, rescue
from lowtide.memory.rescue import TRIES
from prompts import DEVICE, LOG, MODELS, Node, go, kinds, runner
from small import close, forward, load, patcher, unload

import nodes

GPU = backend.device_of(DEVICE)
ORIGINAL = execution.get_output_data
FAILS: list[BaseException] = []
HELD: list[int] = []


class Hungry(Node):
    """Fails as long as FAILS says so, each time with a tensor in its frame."""

    def work(self, mb, a, b):
        HELD.append(backend.allocated(GPU))
        if a is not None:
            load(a)
        held = torch.zeros(mb << 20, dtype=torch.uint8, device=DEVICE)
        if FAILS:
            raise FAILS.pop(0)
        del held
        return (None if a is None else forward(a),)


class Writes(Hungry):
    OUTPUT_NODE = True


class Pays(Hungry):
    API_NODE = True


class Keep(Node):
    OUTPUT_NODE = True

    def work(self, mb, a, b):
        prompts.SEEN["result"] = a
        return (mb,)


for kind in (Hungry, Writes, Pays, Keep):
    nodes.NODE_CLASS_MAPPINGS[kind.__name__] = kind

OOM = torch.OutOfMemoryError


def errors(count: int, kind: object = OOM) -> None:
    FAILS[:] = [kind("CUDA out of memory. Tried to allocate 2.00 GiB") for _ in range(count)]
    HELD.clear()


def prompt(one, mb=5, node="Hungry", rescue="on", **more):
    return go(
        one,
        s=("LowtideMemoryLevelSelector", 0, {"rescue": rescue}),
        m=("Loader", 1),
        h=(node, mb, "m", "s"),
        k=("Keep", 0, "h"),
        **more,
    )


def attempts() -> list[tuple[str, str]]:
    return [(it["rung"], it["outcome"]) for it in executor.timelines()[-1]["attempts"]]


def fresh() -> None:
    executor.uninstall()
    assert execution.get_output_data is ORIGINAL
    unload()
    FAILS.clear()
    MODELS.clear()
    MODELS[1] = patcher()
    prompts.SEEN.clear()
    backend.empty_cache(GPU)
    executor.install()


def case_a_node_out_of_memory_finishes_with_the_same_result() -> None:
    fresh()
    load(MODELS[1])
    expected = forward(MODELS[1])
    for kind in kinds():
        for count in (1, 2):
            fresh()
            errors(count)
            one = runner(kind)
            assert prompt(one) == ["m", *["h"] * (count + 1), "k"], LOG
            assert one.success
            assert close(prompts.SEEN["result"], expected) == 0
            assert attempts()[-1][1] == "finished" and len(attempts()) == count


def case_each_attempt_begins_on_an_empty_device() -> None:
    fresh()
    errors(2)
    prompt(runner(), mb=40)
    assert HELD == [0, 0, 0], HELD


def case_later_attempts_stream_the_model() -> None:
    fresh()
    size = MODELS[1].model_size()
    errors(1)
    prompt(runner())
    assert attempts() == [("free", "finished")]
    assert MODELS[1].loaded_size() == size
    fresh()
    errors(3)
    prompt(runner())
    assert [rung for rung, _ in attempts()] == ["free", "stream", "stream everything"]
    assert MODELS[1].model.model_loaded_weight_memory == 0
    fresh()


def case_after_the_last_rung_the_error_comes_out() -> None:
    fresh()
    errors(TRIES + 5)
    one = runner()
    ran = prompt(one)
    assert not one.success
    assert 2 <= ran.count("h") <= TRIES + 1
    assert any("out of memory" in str(data) for _, data in one.status_messages)
    assert executor.timelines()[-1]["status"] == "failed"
    assert backend.allocated(GPU) == 0
    errors(0)
    assert prompt(one)[-1] == "k" and one.success


def case_other_errors_are_never_run_again() -> None:
    for kind in (ValueError, RuntimeError):
        fresh()
        FAILS[:] = [kind("no")]
        one = runner()
        assert prompt(one) == ["m", "h"] and not one.success
        assert attempts() == []


def case_another_error_in_an_attempt_comes_out() -> None:
    fresh()
    FAILS[:] = [OOM("out of memory"), ValueError("no")]
    one = runner()
    assert prompt(one) == ["m", "h", "h"] and not one.success
    assert attempts() == [("free", "ValueError")]


def case_output_nodes_are_never_run_twice() -> None:
    fresh()
    errors(1)
    one = runner()
    assert prompt(one, node="Writes") == ["m", "h"] and not one.success


def case_nodes_that_call_a_paid_service_are_never_run_twice() -> None:
    fresh()
    errors(1)
    one = runner()
    assert prompt(one, node="Pays") == ["m", "h"] and not one.success


def case_a_rescue_leaves_no_cycle_that_holds_the_inputs() -> None:
    import gc

    for count in (1, 2):
        fresh()
        errors(count)
        one = runner()
        gc.collect()
        gc.disable()
        try:
            prompt(one)
            # Those that are held by nothing but themselves are in no cycle by now.
            left = [it for it in gc.get_objects() if type(it) is OOM and it not in FAILS]
            assert left == [], (count, left)
        finally:
            gc.enable()


def case_what_goes_wrong_in_a_rescue_never_hides_the_nodes_error() -> None:
    keep = rescue.unload_all, rescue.inputs_under

    def broken(*args):
        raise ValueError("of the rescue's own")

    for name in ("unload_all", "inputs_under"):
        fresh()
        errors(TRIES + 5)
        setattr(rescue, name, broken)
        one = runner()
        try:
            ran = prompt(one)
        finally:
            rescue.unload_all, rescue.inputs_under = keep
        said = [data for event, data in one.status_messages if event == "execution_error"]
        assert len(said) == 1 and "out of memory" in said[0]["exception_message"], said
        assert ran.count("h") == {"unload_all": 1, "inputs_under": 1}[name], (name, ran)


def case_a_rescued_model_follows_its_policy_all_the_same() -> None:
    from lowtide.memory.adapters.comfy.patchers import marked
    from lowtide.memory.adapters.comfy.residency import Residency

    for policy, left in (("always", 0), ("off", MODELS[1].model_size())):
        fresh()
        MODELS[1] = marked(patcher(), Residency(cleanup=policy))
        errors(3)
        one = runner()
        prompt(one)
        assert one.success and attempts()[-1] == ("stream everything", "finished")
        held = backend.allocated(GPU)
        assert held == 0 if left == 0 else held >= 0, (policy, held)
        if policy == "always":
            assert not [it for it in prompts.mm.current_loaded_models if it.model is not None]


def case_each_try_says_what_it_freed_and_how_many_there_can_be() -> None:
    import logging

    fresh()
    errors(2)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("lowtide")
    logger.addHandler(handler)
    try:
        prompt(runner(), mb=40)
    finally:
        logger.removeHandler(handler)
    assert any(f"try 1 of at most {TRIES}" in line for line in said), said
    tries = executor.timelines()[-1]["attempts"]
    assert all(it["freed"] >= 40 * prompts.MIB for it in tries), tries
    assert any("40.0 MB freed" in line or "MB freed" in line for line in said), said


def case_rescue_can_be_switched_off() -> None:
    fresh()
    errors(1)
    one = runner()
    assert prompt(one, rescue="off") == ["m", "h"] and not one.success
    assert attempts() == []


def case_a_graph_without_a_selector_is_left_alone() -> None:
    fresh()
    errors(1)
    one = runner()
    prompt(runner())
    assert attempts() == [("free", "finished")]
    errors(1)
    assert go(one, m=("Loader", 1), h=("Hungry", 5, "m"), k=("Keep", 0, "h")) == ["m", "h"]
    assert not one.success


def case_what_is_no_model_is_handed_on_as_it_is() -> None:
    from lowtide.memory.rescue import ladder

    for rung in ladder():
        if rung.config is not None:
            pairs = [[torch.zeros(1), {"pooled_output": None}]]
            values = ["text", 5, None, [1], {"samples": torch.zeros(1)}, pairs, []]
            assert rescue.inputs_under(rung, {"all": values}, lambda: "off") is None
    fresh()
    executor.uninstall()

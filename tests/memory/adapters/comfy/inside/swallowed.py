"""Cases: out-of-memory errors that ComfyUI keeps to itself are found, and what they left undone."""

from __future__ import annotations

import gc
import logging
import sys
import weakref

import prompts
import torch
from lowtide.memory.adapters.comfy import executor
from lowtide.memory.adapters.comfy.patchers import with_residency
from lowtide.memory.adapters.comfy.residency import Residency
from lowtide.memory.adapters.comfy.swallowed import forget_failed_loads
from prompts import DEVICE, LOG, MODELS, Node, go, runner
from small import close, forward, load, patcher, unload

import nodes

TIMES: list[int] = []
MIXED = "Expected all tensors to be on the same device, but found at least two devices"


def fails_now() -> bool:
    """Whether this run is to fail; one run fewer is left to."""
    if not TIMES or not TIMES[0]:
        return False
    TIMES[0] -= 1
    return True


def runs_out() -> str:
    """Runs out of memory on the device and catches it; the message."""
    sys.lowtide_sim_handle.fail_allocation(1)
    try:
        torch.zeros(8, device=DEVICE)
    except torch.OutOfMemoryError as error:
        return str(error)
    raise AssertionError("nothing failed")


class LosesPatch(Node):
    """Says as the core does that a LoRA could not be computed, and goes on without it."""

    def work(self, mb, a, b):
        if fails_now():
            logging.error(f"ERROR lora diffusion_model.out.weight {runs_out()}")
        return (mb,)


class LosesInTheEnd(LosesPatch):
    OUTPUT_NODE = True


class MixesDevices(Node):
    """``mb``: whether it runs out of memory before it fails."""

    def work(self, mb, a, b):
        if fails_now():
            if mb:
                runs_out()
            raise RuntimeError(MIXED)
        return (mb,)


for kind in (LosesPatch, LosesInTheEnd, MixesDevices):
    nodes.NODE_CLASS_MAPPINGS[kind.__name__] = kind


def prompt(node: str, times: int, mb: int = 1, rescue: str = "on"):
    executor.uninstall()
    unload()
    executor.install()
    TIMES[:] = [times]
    one = runner()
    go(
        one,
        s=("LowtideMemoryLevelSelector", 0, {"rescue": rescue}),
        h=(node, mb, "s"),
        k=("Leave", 0, "h"),
    )
    ran = list(LOG)
    outcomes = [it["outcome"] for it in executor.timelines()[-1]["attempts"]]
    executor.uninstall()
    return one, ran, outcomes


def case_a_lora_that_was_left_out_is_computed_again() -> None:
    one, ran, outcomes = prompt("LosesPatch", 1)
    assert one.success and ran == ["h", "h", "k"], ran
    assert outcomes == ["finished"]


def case_a_lora_that_stays_out_fails_the_prompt() -> None:
    one, _, outcomes = prompt("LosesPatch", 9)
    assert not one.success and outcomes[-1] == "out of memory again", outcomes
    assert any("LoRA" in str(data) for _, data in one.status_messages)


def case_without_rescue_a_lost_lora_changes_nothing() -> None:
    for node, rescue in (("LosesPatch", "off"), ("LosesInTheEnd", "on")):
        one, ran, outcomes = prompt(node, 1, rescue=rescue)
        assert one.success and ran.count("h") == 1 and outcomes == []


def case_an_error_about_devices_after_running_out_of_memory_is_rescued() -> None:
    one, _, outcomes = prompt("MixesDevices", 1)
    assert one.success and outcomes == ["finished"], outcomes


def case_an_error_about_devices_alone_is_not() -> None:
    one, ran, outcomes = prompt("MixesDevices", 1, mb=0)
    assert not one.success and ran == ["h"] and outcomes == []


def case_nothing_is_left_in_the_log_s_way() -> None:
    before = list(logging.getLogger().filters)
    executor.install()
    executor.uninstall()
    assert logging.getLogger().filters == before


def case_flags_of_a_failed_load_are_undone() -> None:
    MODELS[1] = model = patcher()
    layer = next(it for it in model.model.modules() if hasattr(it, "comfy_cast_weights"))
    layer.prev_comfy_cast_weights, layer.comfy_cast_weights = False, True
    forget_failed_loads([[model]])
    assert not layer.comfy_cast_weights and not hasattr(layer, "prev_comfy_cast_weights")


def case_a_collected_clone_leaves_the_model_to_the_one_that_uses_it() -> None:
    unload()
    base = patcher()
    load(base)
    expected = forward(base)
    unload()
    old = with_residency(base, Residency(cap=0))
    load(old)
    assert close(forward(old), expected) == 0
    new = with_residency(base, Residency(cap=0))
    load(new)
    assert new.model.model_lowvram
    cycle = [old]
    cycle.append(cycle)
    gone = weakref.ref(old)
    del old, cycle
    gc.collect()
    assert gone() is None
    assert new.model.model_lowvram
    assert close(forward(new), expected) == 0
    unload()
    prompts.SEEN.clear()

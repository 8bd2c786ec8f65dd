"""Cases: Force Cleanup's receipt adds up, names who holds the rest, keeps what it is told to."""

from __future__ import annotations

import sys
import types

import comfy.model_management as mm
import torch
from lowtide.memory import backend
from lowtide.memory.adapters.comfy import executor, results
from lowtide.memory.teardown import BUFFERS, teardown
from prompts import DEVICE, MIB, MODELS, Node, go, kinds, runner
from small import load, patcher, unload

import nodes

GPU = backend.device_of(DEVICE)


class Other(type(patcher().model)):
    """A model of another name."""


class Makes(Node):
    """Gives a tensor of ``mb`` MiB on the device, and one on the host."""

    def work(self, mb, a, b):
        size = mb * MIB
        host = torch.zeros(2 * size, dtype=torch.uint8)
        return ({"samples": [torch.zeros(size, dtype=torch.uint8, device=DEVICE)], "host": host},)


nodes.NODE_CLASS_MAPPINGS["Makes"] = Makes


def two() -> int:
    """Two loaded models of different names; the size of each."""
    MODELS[1], MODELS[2] = patcher(), patcher()
    MODELS[2].model.__class__ = Other
    load(MODELS[1])
    load(MODELS[2])
    return int(MODELS[1].model_size())


def clean() -> None:
    unload()
    MODELS.clear()
    executor.uninstall()
    backend.empty_cache(GPU)
    assert backend.allocated(GPU) == 0


def case_what_came_back_is_named_and_adds_up() -> None:
    size = two()
    torch.zeros(40 * MIB, dtype=torch.uint8, device=DEVICE)
    buffers = getattr(mm, "STREAM_CAST_BUFFERS", None)
    if buffers is not None:
        buffers[None] = torch.zeros(3 * MIB, dtype=torch.uint8, device=DEVICE)  # of no stream
    receipt = teardown(vram=True, ram=False)
    assert receipt.by_owner["Model"] == receipt.by_owner["Other"] == size
    assert receipt.by_owner["allocator cache"] > 30 * MIB, receipt.by_owner
    assert (receipt.by_owner.get(BUFFERS) == 3 * MIB) is (buffers is not None), receipt.by_owner
    assert sum(receipt.by_owner.values()) == receipt.freed
    assert (receipt.after.allocated, receipt.after.reserved) == (0, 0) and receipt.errors == ()
    clean()


def case_models_on_the_keep_list_stay() -> None:
    size = two()
    receipt = teardown(vram=True, ram=True, keep=["other"])
    assert [it.model for it in mm.current_loaded_models] == [MODELS[2]]
    assert MODELS[2].loaded_size() == size and MODELS[1].loaded_size() == 0
    assert set(receipt.by_owner) & {"Model", "Other"} == {"Model"} and receipt.errors == ()
    assert [(it.owner, it.held) for it in receipt.holders] == [("Other", size)]
    receipt = teardown(vram=True, ram=False, keep=["Model", "nobody"])
    assert MODELS[2].loaded_size() == 0
    assert len(receipt.errors) == 2 and "called 'nobody'; there are: Other" in receipt.errors[1]
    clean()


def case_cached_results_are_named_on_device_and_host() -> None:
    for kind in kinds():
        executor.install()
        MODELS[1] = patcher()
        size = MODELS[1].model_size()
        one = runner(kind)
        go(one, m=("Loader", 1), t=("Makes", 3, "m"), out=("Leave", 0, "t", "m"))
        receipt = teardown(vram=True, ram=False)
        assert [(it.owner, it.held) for it in receipt.holders] == [(results.RESULTS, 3 * MIB)]
        host = {it.owner: it.held for it in receipt.host_holders}
        assert host == {results.RESULTS: 6 * MIB, f"Model, in {results.RESULTS}": size}, host
        assert f"    kept by {results.RESULTS}: 6.0 MB" in receipt.text()
        one.reset()
        receipt = teardown(vram=True, ram=False)
        assert receipt.holders == receipt.host_holders == ()
        clean()


def case_another_packs_leak_is_named() -> None:
    module = types.ModuleType("some_pack")
    sys.modules["some_pack"] = module
    module.CACHE = {"last": [torch.zeros(5 * MIB, dtype=torch.uint8, device=DEVICE)]}
    try:
        receipt = teardown(vram=True, ram=False)
        assert [(it.owner, it.held) for it in receipt.holders] == [("some_pack.CACHE", 5 * MIB)]
    finally:
        del sys.modules["some_pack"], module
    teardown(vram=True, ram=False)
    clean()

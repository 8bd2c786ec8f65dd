"""Cases: a model that leaves soon keeps its host copies, and copies nothing back when it leaves."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial

import comfy.model_management as mm
import torch
from between import GPU, clean
from comfy.model_patcher import ModelPatcher
from lowtide.memory import backend
from lowtide.memory.adapters.comfy import executor, host_copies, moved
from lowtide.memory.adapters.comfy.models import leave_device
from lowtide.memory.adapters.comfy.patchers import marked
from lowtide.memory.adapters.comfy.residency import Residency
from prompts import MODELS, SEEN, go, runner
from small import CPU, DEVICE, load, lora, patcher, restored, unload, weights


def begin() -> None:
    host_copies.install(lambda _patcher: True)


def end() -> None:
    host_copies.uninstall()
    unload()


def counted(work: Callable[[], object]) -> int:
    from lowtide_sim import current

    current().reset_counters()
    work()
    return current().counters()["d2h"]


def case_nothing_is_copied_back() -> None:
    for kept in (False, True):
        one = patcher()
        before, size = weights(one), one.model_size()
        if kept:
            begin()
        load(one)
        assert host_copies.kept_bytes() == (size if kept else 0)
        moved_back = counted(partial(leave_device, one))
        compared = sum(it.element_size() for it in one.model.parameters())
        assert moved_back == compared if kept else moved_back >= size
        assert restored(one, before) and backend.allocated(GPU) == 0
        assert {it.device for it in one.model.parameters()} == {CPU}
        assert host_copies.kept_bytes() == 0
        end()


def case_it_computes_the_same_each_time() -> None:
    begin()
    one = patcher()
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    found = []
    for _ in range(3):
        load(one)
        found.append(one.model.diffusion_model(x).cpu())
        leave_device(one)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    end()


def case_a_lora_stays_out_of_the_weights() -> None:
    begin()
    one = patcher()
    before, changed = weights(one), lora(one)
    for part in (changed, one, changed):
        load(part)
        leave_device(part)
        assert restored(one, before)
    end()


def case_what_somebody_changed_on_the_device_is_copied_back() -> None:
    def scaled(weight: torch.nn.Parameter) -> None:
        weight.data.mul_(2)

    def replaced(weight: torch.nn.Parameter) -> None:
        weight.data = weight.data * 2

    for change in (scaled, replaced):
        begin()
        one = patcher()
        weight = one.model.diffusion_model.blocks[0].weight
        value = weight.detach().clone()
        load(one)
        change(weight)
        leave_device(one)
        assert torch.equal(weight, value * 2), change
        end()


def case_partly_on_the_device_only_that_part_is_kept() -> None:
    begin()
    one = patcher()
    before = weights(one)
    mm.load_models_gpu([one], memory_required=0)
    one.partially_unload(CPU, one.model_size() // 2)
    assert 0 < host_copies.kept_bytes() == one.loaded_size() < one.model_size()
    leave_device(one)
    assert restored(one, before)
    end()


def case_a_model_that_could_not_leave_goes_on() -> None:
    begin()
    one = patcher()
    load(one)
    x = torch.randn(4, 256).to(DEVICE)
    before = one.model.diffusion_model(x)
    free, mm.free_memory = mm.free_memory, fails
    try:
        leave_device(one)
    except RuntimeError:
        pass
    finally:
        mm.free_memory = free
    assert {it.device for it in one.model.parameters()} == {torch.device(GPU)}
    assert torch.equal(one.model.diffusion_model(x), before)
    end()


def fails(*_args: object, **_kwargs: object) -> None:
    raise RuntimeError("no")


def case_none_is_kept_where_the_host_is_short() -> None:
    floor = host_copies.FLOOR
    begin()
    one, two = patcher(), patcher()
    load(one)
    host_copies.FLOOR = 1.0
    try:
        load(two)
        assert host_copies.kept_bytes() == 0
    finally:
        host_copies.FLOOR = floor
    end()


def case_a_model_that_is_dropped_leaves_no_copy() -> None:
    begin()
    one = patcher()
    load(one)
    host = weakref.ref(host_copies._kept[one.model][0].host)
    mm.current_loaded_models.clear()
    del one
    gc.collect()
    assert host() is None and not host_copies._kept
    end()


def case_uninstalled_the_method_is_comfyuis() -> None:
    original = ModelPatcher.load
    begin()
    assert ModelPatcher.load is not original
    end()
    assert ModelPatcher.load is original


def case_in_a_prompt_with_always_nothing_is_counted_as_moved_back() -> None:
    for policy, back in (("always", False), ("pressure", True)):
        executor.install()
        MODELS[1] = marked(patcher(), Residency(cleanup=policy))
        go(runner(), m=("Loader", 1), u=("Use", 1, "m"), see=("Leave", 1, "u"))
        if policy == "pressure":
            leave_device(MODELS[1])
            assert moved.read().from_device >= MODELS[1].model_size()
        else:
            run = executor.timelines()[-1]
            assert run["from_device"] == 0 and run["to_device"] == MODELS[1].model_size()
        assert {"at 1": [] if policy == "always" else ["1"]} == SEEN, back
        clean()


def case_what_the_host_shall_give_up_is_not_kept() -> None:
    executor.install()
    MODELS[1] = marked(patcher(), Residency(cleanup="always"))
    go(
        runner(),
        s=("LowtideMemoryLevelSelector", 0, {"cleanup": "always"}),
        t=("LowtideMemorySettings", 0, {"cleanup_host": "on"}),
        m=("Loader", 1),
        u=("Use", 1, "m"),
        see=("Leave", 1, "u"),
    )
    assert executor.timelines()[-1]["from_device"] == MODELS[1].model_size()
    clean()

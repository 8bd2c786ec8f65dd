"""Cases: whatever takes a model off the device, its host copies are put back or dropped."""

from __future__ import annotations

import contextlib
import threading
import unittest
import weakref
from functools import partial

import comfy.model_management as mm
import torch
from between import GPU
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection
from copies import begin, counted, end
from lowtide.memory import backend
from lowtide.memory.adapters.comfy import host_copies, moved
from lowtide.memory.adapters.comfy.models import leave_device
from lowtide.memory.teardown import teardown
from small import (
    CPU,
    DEVICE,
    Model,
    forward,
    load,
    lora,
    patcher,
    restored,
    run,
    unload,
    weights,
)


def teardown_all() -> None:
    teardown(vram=True, ram=False)


def case_what_comfyui_takes_off_the_device_itself_leaves_no_copy() -> None:
    for way in (partial(mm.free_memory, 1e30, DEVICE), unload, teardown_all):
        begin()
        one = patcher()
        before = weights(one)
        load(one)
        hosts = [weakref.ref(it.host) for it in host_copies._kept[one.model]]
        moved_back = counted(way)
        assert moved_back == sum(it.element_size() for it in one.model.parameters())
        assert restored(one, before) and backend.allocated(GPU) == 0
        assert all(host() is None for host in hosts)
        end()


def case_what_leaves_in_part_leaves_no_copy() -> None:
    begin()
    one = patcher()
    load(one)
    one.partially_unload(CPU, one.model_size() // 2)
    held = sum(it.host.nbytes for it in host_copies._kept[one.model])
    assert held == one.loaded_size() < one.model_size()
    end()


def case_a_second_load_is_counted_once() -> None:
    moved.install()
    begin()
    one = patcher()
    size = one.model_size()
    load(one)
    mm.free_memory(1e30, DEVICE)
    load(one)
    assert host_copies.kept_bytes() == size
    before = moved.read()
    leave_device(one)
    assert moved.read() - before == moved.Moved()
    end()
    moved.uninstall()


def case_a_change_on_the_host_between_two_loads_is_not_lost() -> None:
    wanted = [True]
    host_copies.install(lambda _patcher: wanted[0])
    one = patcher()
    load(one)
    mm.free_memory(1e30, DEVICE)
    weight = one.model.diffusion_model.blocks[0].weight
    weight.data[0] += 1  # not the middle
    before = weights(one)
    wanted[0] = False
    load(one)
    leave_device(one)
    assert restored(one, before)
    end()


def case_what_was_injected_in_place_is_ejected_first() -> None:
    def add(one: object, by: float) -> None:
        one.model.diffusion_model.blocks[0].weight.data[0] += by  # not the middle

    begin()
    one = patcher()
    with torch.no_grad():
        one.model.diffusion_model.blocks[0].weight[0] = 1
    before = weights(one)
    one.set_injections("x", [PatcherInjection(partial(add, by=1.0), partial(add, by=-1.0))])
    load(one)
    leave_device(one)
    assert restored(one, before)
    end()


def case_another_clone_takes_over_without_a_copy_back() -> None:
    moved.install()
    begin()
    one = patcher()
    before, changed = weights(one), lora(one)
    load(one)
    assert counted(partial(load, changed)) <= sum(
        it.element_size() for it in one.model.parameters()
    )
    leave_device(changed)
    assert restored(one, before) and moved.read().from_device >= 0
    end()
    moved.uninstall()


def case_another_packs_wrapper_around_ours_and_a_second_install() -> None:
    original = ModelPatcher.load
    begin()
    ours = ModelPatcher.load
    ModelPatcher.load = lambda self, *args, **kwargs: ours(self, *args, **kwargs)
    host_copies.uninstall()
    one = patcher()
    load(one)
    assert host_copies.kept_bytes() == 0
    unload()
    begin()
    load(one)
    assert len(host_copies._kept[one.model]) == len(list(one.model.parameters()))
    end()
    ModelPatcher.load = original


def case_weights_that_share_memory_are_counted_once() -> None:
    begin()
    one = patcher()
    blocks = one.model.diffusion_model.blocks
    both = torch.zeros(2, *blocks[0].weight.shape)
    for index in range(2):
        blocks[index].weight.data = both[index]
    size = one.model_size()
    load(one)
    assert host_copies.kept_bytes() == size
    leave_device(one)
    assert blocks[0].weight.untyped_storage().data_ptr() == both.data_ptr()
    end()


def case_unloaded_from_another_thread_outside_inference_mode() -> None:
    begin()
    with torch.inference_mode():
        one = patcher()
        before = weights(one)
        load(one)
    thread = threading.Thread(target=leave_device, args=(one,))
    thread.start()
    thread.join()
    assert restored(one, before) and {it.device for it in one.model.parameters()} == {CPU}
    assert backend.allocated(GPU) == 0
    end()


def case_hooks_and_loras_in_place() -> None:
    for inplace in (False, True):
        begin()
        one = ModelPatcher(Model(), DEVICE, CPU, weight_inplace_update=inplace)
        before, changed = weights(one), lora(one)
        for part in (changed, one, changed, one):
            load(part)
            found = forward(part)
            host_copies.uninstall()
            unload()
            assert torch.equal(run(part), found)
            begin()
            leave_device(part)
            load(part)
            leave_device(part)
            assert restored(one, before)
        end()


def case_another_packs_patcher_that_unpatches_by_itself_leaves_no_copy() -> None:
    class Own(ModelPatcher):
        def unpatch_model(self, device_to=None, unpatch_weights=True):
            if unpatch_weights:
                self.model.to(device_to)
                self.model.model_loaded_weight_memory = 0
                self.model.current_weight_patches_uuid = None

    begin()
    one = Own(Model(), DEVICE, CPU)
    before = weights(one)
    load(one)
    leave_device(one)
    assert restored(one, before) and not host_copies._kept
    end()


def case_pinned_weights_are_unpinned_once() -> None:
    if getattr(mm, "MAX_PINNED_MEMORY", 0) <= 0:
        raise unittest.SkipTest("this core pins nothing here")
    begin()
    one = patcher()
    before, changed, pinned = weights(one), lora(one), mm.TOTAL_PINNED_MEMORY
    for part in (one, changed, one):
        load(part)
        part.partially_unload(CPU, one.model_size() // 2)
        assert pinned < mm.TOTAL_PINNED_MEMORY
        part.partially_load(DEVICE, one.model_size() // 4)
        leave_device(part)
        assert pinned == mm.TOTAL_PINNED_MEMORY and restored(one, before)
    end()


def case_stopped_in_the_middle_of_an_unload_it_goes_on() -> None:
    def stop(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    begin()
    one = patcher()
    before = weights(one)
    load(one)
    found = forward(one)
    one.model.to = stop
    with contextlib.suppress(KeyboardInterrupt):
        leave_device(one)
    del one.model.to
    assert one.loaded_size() > 0 and torch.equal(forward(one), found)
    leave_device(one)
    assert restored(one, before) and {it.device for it in one.model.parameters()} == {CPU}
    end()

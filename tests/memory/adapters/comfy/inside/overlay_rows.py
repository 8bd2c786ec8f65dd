"""Cases: figures of devices and models as the overlay shows them."""

from __future__ import annotations

import gc
import time
import weakref

import torch
from lowtide.memory import backend
from lowtide.memory.adapters.comfy import float8
from lowtide.memory.adapters.comfy.overlay import events, inventory, readings, state
from lowtide.memory.adapters.comfy.patchers import with_residency
from lowtide.memory.adapters.comfy.residency import Residency
from lowtide.memory.levels import MemoryOptimizationConfig
from prompts import DEVICE, MIB
from small import load, patcher, unload
from watched import GPU, Watched


def case_a_sample_is_what_the_accelerator_counts() -> None:
    with Watched("one"):
        held = torch.zeros(5 * MIB, dtype=torch.uint8, device=DEVICE)
        higher = torch.zeros(9 * MIB, dtype=torch.uint8, device=DEVICE)
        del higher
        (found,) = readings.devices()
        free, total = backend.mem_get_info(GPU)
        assert found["id"] == str(GPU) and found["pages"] == 0
        assert (found["allocated"], found["reserved"]) == backend.held(GPU)
        assert found["allocated"] == held.nbytes
        assert (found["free"], found["total"]) == (free, total)
        assert found["others"] == total - free - found["reserved"]
        assert found["peak"] >= 14 * MIB
        del held
        backend.reset_peaks(GPU)
        (found,) = readings.devices()
        assert found["allocated"] == 0 and found["peak"] >= 14 * MIB, "a peak is not forgotten"


def case_pages_stand_beside_what_torch_counts() -> None:
    with Watched("one"):
        held = torch.zeros(5 * MIB, dtype=torch.uint8, device=DEVICE)
        (plain,) = readings.devices()
        keep, readings.dynamic.pages = readings.dynamic.pages, lambda device: 3 * MIB
        try:
            free, total = backend.mem_get_info(GPU)
            info, backend.mem_get_info = (
                backend.mem_get_info,
                lambda device: (free - 9 * MIB, total),
            )
            (found,) = readings.devices()
        finally:
            readings.dynamic.pages, backend.mem_get_info = keep, info
        assert found["pages"] == 3 * MIB and found["allocated"] == plain["allocated"] == held.nbytes
        assert found["reserved"] == plain["reserved"] and found["others"] == 6 * MIB
        del held


def case_a_device_nobody_used_is_not_asked() -> None:
    keep = backend.is_initialized
    backend.is_initialized = lambda device: False
    try:
        (found,) = readings.devices()
    finally:
        backend.is_initialized = keep
    assert found.pop("id") == str(GPU) and found.pop("name") == GPU.type
    assert set(found.values()) == {None}


def case_a_row_says_where_a_models_bytes_are() -> None:
    with Watched("one"):
        whole, half = patcher(), patcher()
        size = int(whole.model_size())
        capped = with_residency(half, Residency(cap=size // 2))
        load(whole)
        load(capped)
        assert int(capped.loaded_size()) < size
        rows = {row.size - row.on_device: row for row in inventory.rows()}
        assert len(rows) == 2 and len({row.id for row in rows.values()}) == 2
        for one in (whole, capped):
            row = rows[size - int(one.loaded_size())]
            assert (row.size, row.on_device) == (size, int(one.loaded_size()))
            assert row.streamed == size - row.on_device
            assert row.on_host == sum(
                it.nbytes for it in one.model.state_dict().values() if it.device.type == "cpu"
            )
            assert (row.name, row.kind, row.fp8) == ("Model", "other", 0)
            assert row.can_unload and row.device == str(GPU)
        before = {row.id for row in rows.values()}
        assert {row.id for row in inventory.rows()} == before, "an id stays"
        unload()
        load(whole)
        assert inventory.rows()[0].id in before, "while the model lives"


def case_weights_in_eight_bits_and_their_originals_are_counted() -> None:
    with Watched("one"):
        one = patcher()
        coded = float8.store(one, MemoryOptimizationConfig(fp8_storage=True), [])
        load(coded)
        codes = [it for it in one.model.parameters() if it.dtype == torch.float8_e4m3fn]
        (row,) = inventory.rows()
        assert row.fp8 == sum(it.nbytes for it in codes) > 0
        assert row.size == row.on_device == int(coded.model_size()) < int(one.model_size())
        # The originals of four bytes a value wait on the host to be put back.
        assert row.on_host == 4 * row.fp8 and row.streamed == 0
        unload()
        del coded
        load(one)
        (row,) = inventory.rows()
        assert row.fp8 == row.on_host == 0


def case_the_cores_own_quantised_weights_are_counted_by_their_codes() -> None:
    with Watched("one"):
        one = patcher()
        for block in one.model.diffusion_model.blocks:
            weight = torch.nn.Parameter(block.weight, requires_grad=False)
            weight._qdata = torch.zeros(weight.shape, dtype=torch.float8_e4m3fn)
            block.weight = weight
        load(one)
        (row,) = inventory.rows()
        assert row.fp8 == sum(it.weight.numel() for it in one.model.diffusion_model.blocks)


def case_a_rows_bytes_follow_an_unload() -> None:
    with Watched("one"):
        one = patcher()
        load(one)
        (row,) = inventory.rows()
        assert inventory.patcher_of(row.id) is one and inventory.patcher_of("other") is None
        one.partially_unload(one.offload_device, row.size // 2)
        (row,) = inventory.rows()
        assert 0 < row.on_device == int(one.loaded_size()) < row.size
        assert row.on_host == row.size - row.on_device


def case_a_pipeline_has_a_row_and_leaves_by_it() -> None:
    from lowtide.memory.adapters.comfy.overlay import freeing
    from lowtide.memory.handles import LoadedPipeline

    with Watched("one"):
        loaded = LoadedPipeline(patcher().model, "/srv/secret/tiny\u202e")
        (row,) = inventory.rows()
        assert (row.name, row.kind, row.on_device) == ("tiny", "pipeline", 0)
        assert row.on_host == row.size == loaded.size and row.streamed is None
        loaded.pipeline.to(GPU)
        inventory.recount()
        (row,) = inventory.rows()
        assert row.on_device == row.size and row.on_host == 0 and row.can_unload
        receipt = freeing.unload(row.id)
        assert receipt["freed"] >= row.size and "secret" not in repr(receipt)
        (row,) = inventory.rows()
        assert row.on_device == 0 == backend.allocated(GPU), "counted anew at once"
        del loaded
        assert inventory.rows() == []


def case_kinds_and_pinned_memory() -> None:
    def of(place: str, **members: object) -> str:
        return inventory.kind_of(
            type("Net", (torch.nn.Module,), {"__module__": place, **members})()
        )

    assert of("comfy.cldm.cldm") == of("comfy.t2i_adapter.adapter") == "control"
    assert of("comfy.sd1_clip", encode_token_weights=None) == "clip"
    assert of("elsewhere", encode=None, decode=None) == "vae"
    assert of("comfy.clip_vision") == "other"
    with Watched("one"):
        one = patcher()
        load(one)
        (row,) = inventory.rows()
        if not hasattr(one, "pinned"):
            assert row.pinned is None
            return
        assert row.pinned == 0
        one.pinned.add("diffusion_model.norm.weight")
        one.partially_unload(one.offload_device, 1)  # looked through when it moved
        (row,) = inventory.rows()
        # On CUDA the core pins what it has just taken off the device as well.
        assert row.pinned == sum(one.get_model_object(key).nbytes for key in one.pinned) > 0
        one.pinned.clear()


def case_nothing_here_keeps_a_model_alive() -> None:
    from lowtide.memory.adapters.comfy.overlay import freeing

    with Watched("one") as server:
        one = patcher()
        load(one)
        events.beat()
        (row,) = inventory.rows()
        gone, owner = weakref.ref(one.model), weakref.ref(one)
        gc.disable()
        try:
            receipt = freeing.unload(row.id)
            state.read()
            del one
            assert gone() is None and owner() is None, "without a collection"
        finally:
            gc.enable()
        assert backend.allocated(GPU) == 0 and receipt["remaining"] == 0
        assert sum(receipt["by_owner"].values()) == receipt["freed"] > 0
        assert receipt["by_owner"]["Model"] == row.on_device
        assert inventory.rows() == [] and state.read()["models"] == []
        assert server.of("lowtide.receipt")[-1]["receipt"]["by"] == "user"


def case_last_used_is_when_comfyui_wanted_it() -> None:
    with Watched("one"):
        one, other = patcher(), patcher()
        started = time.time()
        load(one)
        load(other)
        load(one)
        rows = inventory.rows()
        assert [inventory.patcher_of(row.id) for row in rows] == [one, other]
        assert rows[0].last_used > rows[1].last_used >= started

"""Cases: what the overlay is shown of ComfyUI's models and runs, and what it sends when."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import prompts
import torch
from lowtide.memory import backend
from lowtide.memory.adapters.comfy import executor, float8
from lowtide.memory.adapters.comfy.overlay import (
    events,
    fit,
    hub,
    inventory,
    ledger,
    nodes_measured,
    pulse,
    readings,
    state,
)
from lowtide.memory.adapters.comfy.patchers import Residency, with_residency
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.tests.memory.adapters.comfy.fake_server import FakeServer, Installed
from prompts import DEVICE, MIB, MODELS, Node, go, runner
from small import load, patcher, unload

import nodes

GPU = backend.device_of(DEVICE)


class Tab(prompts.Server):
    client_id = "one"


class Watched:
    """A connected tab that has asked for the state, with nothing loaded and nothing known."""

    def __init__(self, *tabs: str) -> None:
        self.installed = Installed(FakeServer(*tabs))

    def __enter__(self) -> FakeServer:
        clean()
        found = self.installed.__enter__()
        events.begin()
        return found

    def __exit__(self, *exc: object) -> None:
        clean()
        self.installed.__exit__(*exc)


def clean() -> None:
    events.pulse.stop()
    events._state.update(asked=False, models=None)
    unload()
    MODELS.clear()
    executor.uninstall()
    ledger.forget()
    nodes_measured.forget()
    readings.forget_peaks()
    backend.empty_cache(GPU)
    assert backend.allocated(GPU) == 0


def running(server: FakeServer) -> object:
    """An executor whose prompts come from the tab ``one``, which these prompts do not say."""
    one = runner()
    one.server = Tab()
    server.client_id = "one"
    return one


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


def case_a_run_is_told_of_node_by_node() -> None:
    with Watched("one", "two") as server:
        one = running(server)
        MODELS[1] = patcher()
        go(one, m=("Loader", 1), x=("Use", 3, "m"), out=("Leave", 0, "x"))
        events.pulse.stop()
        spans = server.of("lowtide.node")
        assert [it["span"]["node"] for it in spans] == ["m", "x", "out"]
        assert {sid for event, _, sid in server.sent if event == "lowtide.node"} == {"one"}
        assert {it["prompt_id"] for it in spans} == {"prompt"}
        (told,) = server.of("lowtide.run")
        (last,) = executor.timelines()
        assert told["run"] == events.run_of(last) == state.read()["runs"][-1]
        assert told["run"]["nodes"] == [it["span"] for it in spans]
        assert {sid for event, _, sid in server.sent if event == "lowtide.run"} == {None}
        numbers = [data["seq"] for _, data, _ in server.sent]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert hub.head() == {"boot": hub.BOOT, "seq": numbers[-1]}
        assert state.read()["devices"][0]["peak"] >= last["peak_allocated"] > 0


def case_a_late_tab_sees_the_run_that_is_running() -> None:
    seen: list[dict] = []

    class Look(Node):
        OUTPUT_NODE = True

        def work(self, mb, a, b):
            seen.append(state.read())
            return {"ui": {"n": [mb]}, "result": (mb,)}

    nodes.NODE_CLASS_MAPPINGS["Look"] = Look
    with Watched("one") as server:
        go(running(server), x=("Node", 3), out=("Look", 0, "x"))
        (late,) = seen
        (run,) = late["runs"]
        assert run["status"] == "running" and [it["node"] for it in run["nodes"]] == ["x"]
        assert set(late) == {
            *("boot", "seq", "running", "devices", "host", "models", "runs", "receipts", "next"),
            "history",
        }


def case_samples_of_a_run_show_its_peak() -> None:
    class Waits(Node):
        OUTPUT_NODE = True

        def work(self, mb, a, b):
            held = torch.zeros(mb * MIB, dtype=torch.uint8, device=DEVICE)
            time.sleep(0.35)
            del held
            return {"ui": {"n": [mb]}, "result": (mb,)}

    nodes.NODE_CLASS_MAPPINGS["Waits"] = Waits
    with Watched("one") as server:
        go(running(server), x=("Waits", 7))
        rows = executor.timelines()[-1]["samples"]
        assert 3 <= len(rows) <= 600 and rows == sorted(rows)
        assert max(row[1] for row in rows) == 7 * MIB
        assert all(row[2] >= row[1] for row in rows) and rows[-1][1] == 0


def case_without_a_tab_nothing_is_sent_and_no_thread_is_there() -> None:
    def threads() -> list[str]:
        return [it.name for it in threading.enumerate() if it.name == pulse.NAME]

    with Watched() as server:
        grace, pulse.GRACE_SECONDS = pulse.GRACE_SECONDS, 0.1
        try:
            events.pulse.wake()
            until = time.monotonic() + 5
            while threads() and time.monotonic() < until:
                time.sleep(0.02)
            beats = events.pulse.beats
            go(running(server), x=("Node", 3), out=("Leave", 0, "x"))
            assert threads() == [] and server.sent == [] and events.pulse.beats == beats
            server.sockets["late"] = object()
            events.connected()
            until = time.monotonic() + 5
            while not server.of("lowtide.sample") and time.monotonic() < until:
                time.sleep(0.02)
            assert len(threads()) == 1
            first = server.of("lowtide.sample")[0]
            assert set(first) == {"boot", "seq", "running", "devices", "host"}
            assert not first["running"] and first["host"]["rss"] > 0
            server.sockets.clear()
            until = time.monotonic() + 5
            while threads() and time.monotonic() < until:
                time.sleep(0.02)
            assert threads() == []
        finally:
            pulse.GRACE_SECONDS = grace


def case_a_connection_alone_starts_nothing() -> None:
    with Installed(FakeServer("someone")) as server:
        clean()
        events.connected()
        assert not events.pulse.alive and server.sent == []


def case_models_are_sent_when_they_moved() -> None:
    with Watched("one") as server:
        events.pulse.stop()
        MODELS[1] = patcher()
        server.sent.clear()
        for _ in range(3):
            events.beat()
        assert len(server.of("lowtide.models")) <= 1
        server.sent.clear()
        load(MODELS[1])
        for _ in range(3):
            events.beat()
        (told,) = server.of("lowtide.models")
        assert told["models"] == [row.to_dict() for row in inventory.rows()]
        assert len(server.of("lowtide.sample")) == 3


def case_a_browser_that_reads_slowly_gets_no_more_samples() -> None:
    with Watched("one") as server:
        events.pulse.stop()
        for _ in range(300):
            server.messages.put_nowait(None)
        server.sent.clear()
        events.beat()
        assert server.of("lowtide.sample") == []


def case_a_sample_costs_little() -> None:
    """At most half a percent of a core at two samples a second, with models loaded."""
    with Watched("one") as server:
        events.pulse.stop()
        MODELS.update({at: patcher() for at in range(4)})
        for one in MODELS.values():
            load(one)
        events.beat()
        started = time.thread_time()
        for _ in range(200):
            events.beat()
        each = (time.thread_time() - started) / 200
        assert each / pulse.RUNNING_SECONDS <= 0.005, f"{each * 1000:.2f} ms a sample"
        assert len(server.of("lowtide.sample")) >= 200


def case_a_node_that_ran_is_known_to_fit_or_not() -> None:
    with Watched("one") as server:
        one = running(server)
        go(one, x=("Node", 3), y=("Node", 9, "x"), out=("Leave", 0, "y"))
        graph = {
            "x": {"class_type": "Node", "inputs": {"mb": 3}},
            "y": {"class_type": "Node", "inputs": {"mb": 9, "a": ["x", 0]}},
        }
        free = fit.available()
        assert free == sum(backend.mem_get_info(GPU)[:1]) + backend.reserved(GPU)
        found = fit.check(graph)
        assert found["fits"] is True
        assert found["nodes"]["y"]["need"] == 9 * MIB and found["nodes"]["y"]["free"] == free
        assert found["nodes"]["y"]["why"].startswith("measured: 9.0 MB")
        graph["y"]["inputs"]["mb"] = 10
        found = fit.check(graph)
        assert found["fits"] is None and found["nodes"]["y"]["need"] is None
        assert "never measured" in found["nodes"]["y"]["why"]
        fit.SOURCES.insert(
            1, lambda graph, node, named: (MIB, "predicted") if node == "y" else None
        )
        try:
            assert fit.check(graph)["nodes"]["y"]["why"] == "predicted"
            graph["y"]["inputs"]["mb"] = 9
            assert fit.check(graph)["nodes"]["y"]["why"].startswith("measured"), "it is surer"
        finally:
            del fit.SOURCES[1]
        keep, fit.available = fit.available, lambda: 8 * MIB
        try:
            found = fit.check(graph)
        finally:
            fit.available = keep
        assert found["fits"] is False and found["nodes"]["x"]["fits"] is True
        assert found["nodes"]["y"]["remedy"].startswith("1.0 MB too much: add Lowtide")


def case_a_node_that_failed_says_nothing_of_what_it_needs() -> None:
    with Watched("one") as server:
        go(running(server), out=("Fails", 3))
        graph = {"out": {"class_type": "Fails", "inputs": {"mb": 3}}}
        assert fit.check(graph)["nodes"]["out"]["fits"] is None


def case_hostile_ids_and_classes_are_bounded() -> None:
    name = "x\u202e\x00" + "y" * 10_000
    with Watched("one") as server:
        one = running(server)
        for mb in (0, 1):  # the second time the first of them is cached
            go(one, **{name: ("Node", 0), "out": ("Leave", mb, name)})
        first, second = (it["run"] for it in server.of("lowtide.run"))
        assert "\u202e" not in repr([first, second]) and len(repr([first, second])) < 5000
        assert "\x00" not in first["nodes"][0]["node"] and second["cached"]

"""Cases: what the overlay is told while prompts run and while none does."""

from __future__ import annotations

import threading
import time

import torch
from lowtide.memory.adapters.comfy import executor
from lowtide.memory.adapters.comfy.overlay import events, hub, inventory, pulse, state
from lowtide.tests.memory.adapters.comfy.fake_server import FakeServer, Installed
from prompts import DEVICE, MIB, MODELS, Node, go
from small import load, patcher
from watched import Watched, clean, running

import nodes


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


def case_a_page_at_rest_is_told_what_moves_and_no_more() -> None:
    with Watched("one") as server:
        events.pulse.stop()
        events.begin()
        events.pulse.stop()
        server.sent.clear()
        for _ in range(5):
            events.beat()
        assert len(server.of("lowtide.sample")) == 1
        held = torch.zeros(3 * MIB, dtype=torch.uint8, device=DEVICE)
        for _ in range(5):
            events.beat()
        assert len(server.of("lowtide.sample")) == 2
        assert server.of("lowtide.sample")[-1]["devices"][0]["allocated"] >= held.nbytes
        del held
        events.connected()  # who comes now has seen none of them
        events.pulse.stop()
        before = len(server.of("lowtide.sample"))
        events.news.forget()
        events.beat()
        assert len(server.of("lowtide.sample")) == before + 1


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
            events.news.forget()
            events.beat()
        each = (time.thread_time() - started) / 200
        assert each / pulse.RUNNING_SECONDS <= 0.005, f"{each * 1000:.2f} ms a sample"
        assert len(server.of("lowtide.sample")) >= 200


def case_hostile_ids_and_classes_are_bounded() -> None:
    name = "x\u202e\x00" + "y" * 10_000
    with Watched("one") as server:
        one = running(server)
        for mb in (0, 1):  # the second time the first of them is cached
            go(one, **{name: ("Node", 0), "out": ("Leave", mb, name)})
        first, second = (it["run"] for it in server.of("lowtide.run"))
        assert "\u202e" not in repr([first, second]) and len(repr([first, second])) < 5000
        assert "\x00" not in first["nodes"][0]["node"] and second["cached"]

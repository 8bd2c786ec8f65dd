"""The overlay's server side in a running ComfyUI: state, messages, and what may be asked for."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from lowtide.memory.adapters.comfy.overlay.news import HOST_STEP
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.fixtures import CHECKPOINT
from lowtide.tests.hosts.overlay import ask, refusal, state, submit
from lowtide.tests.hosts.server import Graph, Server
from lowtide.tests.hosts.websocket import Tab

pytestmark = [pytest.mark.host, pytest.mark.devices("npu"), pytest.mark.long]


@pytest.fixture
def overlay(server: Server) -> Iterator[Server]:
    """The server, with nothing set for the next runs."""
    yield server
    ask(server, "next", level=None, budget_gb=None)


def loaded(server: Server) -> Graph:
    """A stock graph that has run and left its models on the device."""
    graph = graphs.stock(CHECKPOINT, size=64, steps=1)
    run = server.queue(graph)
    assert run.succeeded, run.error
    return graph


def test_the_state_is_what_the_accelerator_and_comfyui_count(overlay: Server) -> None:
    state(overlay)  # from here on runs are followed
    loaded(overlay)
    found, counters = state(overlay), overlay.counters()
    (device,) = found["devices"]
    for name in ("allocated", "reserved"):
        assert device[name] == counters[name], name
    assert device["total"] == counters["capacity"]
    assert device["free"] + device["reserved"] + device["others"] == device["total"]
    assert device["peak"] >= counters["peak_allocated"] > 0
    assert found["running"] is False
    assert set(found["history"]) == {"active", "runs", "bytes", "rows"}
    assert 0 < found["host"]["rss"] < found["host"]["total"]

    shown = {row["name"]: (row["size"], row["on_device"]) for row in found["models"]}
    assert shown == {it["model"]: (it["size"], it["resident"]) for it in counters["models"]}
    assert {row["kind"] for row in found["models"]} == {"model", "clip", "vae"}
    for row in found["models"]:
        assert row["streamed"] == row["size"] - row["on_device"] and row["can_unload"]
        assert row["last_used"] == pytest.approx(time.time(), abs=120)
        assert row["fp8"] == 0 and row["on_host"] is not None
    run = found["runs"][-1]
    assert run["status"] == "done" and {it["node"] for it in run["nodes"]} == set("1234567")
    assert run["peak_allocated"] == counters["peak_allocated"]
    assert 1 <= len(run["samples"]) <= 600


@pytest.mark.devices("cpu", "cuda")
def test_the_state_of_every_device(overlay: Server) -> None:
    state(overlay)
    loaded(overlay)
    found, counters = state(overlay), overlay.counters()
    (device,) = found["devices"]
    assert device["id"].partition(":")[0] == overlay.device
    assert device["allocated"] == counters.get("allocated")
    assert 0 < device["free"] < device["total"]
    assert {row["can_unload"] for row in found["models"]} == {overlay.device != "cpu"}
    (row, *_) = found["models"]
    if overlay.device == "cpu":
        assert found["runs"][-1]["samples"] == []
        assert refusal(overlay, "unload", {"id": row["id"]})[0] == 409
    else:
        assert ask(overlay, "unload", id=row["id"])["receipt"]["freed"] > 0
        assert row["id"] not in {it["id"] for it in state(overlay)["models"]}


def test_a_run_is_told_of_to_those_it_concerns(overlay: Server) -> None:
    first = state(overlay)
    graph = graphs.stock(CHECKPOINT, size=64, steps=1, seed=5)
    with Tab(overlay, "mine") as mine, Tab(overlay, "other") as other:
        prompt = submit(overlay, graph, mine)
        overlay.finish(prompt)
        (told,) = mine.wait("lowtide.run")
        assert other.wait("lowtide.run") == [told]
        mine.wait("lowtide.sample", 2)
        nodes = mine.of("lowtide.node")
        assert other.of("lowtide.node") == []
        sent = [it["data"] for it in mine.messages if it["type"].startswith("lowtide.")]
    assert {it["boot"] for it in sent} == {first["boot"]}
    assert {it["prompt_id"] for it in nodes} == {prompt} == {told["run"]["run"]}
    assert [it["span"] for it in nodes] == told["run"]["nodes"]
    last = state(overlay)
    assert last["runs"][-1] == told["run"]
    numbers = [it["seq"] for it in sent]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert first["seq"] < numbers[0] and last["seq"] >= numbers[-1]


def test_samples_come_no_more_often_than_allowed_and_to_all(overlay: Server) -> None:
    state(overlay)
    with Tab(overlay, "watching") as tab:
        started = time.monotonic()
        for count in (1, 2, 3):
            for _ in range(5):
                state(overlay)
            tab.wait("lowtide.sample", count)
        seconds = time.monotonic() - started
        assert len(tab.of("lowtide.sample")) <= seconds + 2
        assert not tab.of("lowtide.sample")[-1]["running"]


def _moved(one: dict[str, Any], other: dict[str, Any]) -> bool:
    far = (abs(value - other["host"][name]) >= HOST_STEP for name, value in one["host"].items())
    return one["devices"] != other["devices"] or any(far)


def test_a_page_at_rest_is_left_in_peace(overlay: Server) -> None:
    state(overlay)
    with Tab(overlay, "watching") as tab:
        tab.wait("lowtide.sample")
        time.sleep(3)  # a sample may be the first that somebody else was sent
        before = len(tab.of("lowtide.sample")) - 1
        time.sleep(6)
        told = tab.of("lowtide.sample")[before:]
        # Other programs may move the host's RAM all the time: nothing is sent that says nothing.
        assert all(_moved(*pair) for pair in itertools.pairwise(told)), told


def test_a_tab_that_comes_late_sees_the_run_that_is_running(overlay: Server) -> None:
    state(overlay)
    graph = graphs.stock(CHECKPOINT, size=64, steps=200, seed=6)
    prompt = overlay.submit(graph)
    overlay.wait_running("5", 1)
    found = state(overlay)
    overlay.interrupt()
    overlay.finish(prompt)
    assert found["running"] is True
    run = found["runs"][-1]
    assert run["run"] == prompt and run["status"] == "running"
    assert {"1", "2"} <= {it["node"] for it in run["nodes"]}
    assert state(overlay)["runs"][-1]["status"] == "interrupted"


def test_one_model_is_unloaded_and_then_all(overlay: Server) -> None:
    state(overlay)
    loaded(overlay)
    found = state(overlay)
    before = {row["kind"]: row for row in found["models"]}
    held = overlay.counters()["allocated"]
    receipt = ask(overlay, "unload", id=before["model"]["id"])["receipt"]
    assert receipt["by"] == "user" and receipt["remaining"] == 0
    after = state(overlay)
    assert {row["kind"] for row in after["models"]} == {"clip", "vae"}
    assert overlay.counters()["allocated"] <= held - before["model"]["on_device"]
    code, error = refusal(overlay, "unload", {"id": before["model"]["id"]})
    assert code == 404 and "fetch the state" in error

    ask(overlay, "free", target="vram", keep=[before["vae"]["name"].upper()])
    assert [row["id"] for row in state(overlay)["models"]] == [before["vae"]["id"]]
    receipt = ask(overlay, "free", target="vram")["receipt"]
    counters = overlay.counters()
    assert (counters["allocated"], counters["reserved"], counters["models"]) == (0, 0, [])
    assert receipt["freed"] > 0 and receipt["after"]["reserved"] == 0
    last = state(overlay)
    assert last["receipts"][-1] == receipt
    for place in (str(overlay.base), str(overlay.installation.root)):
        assert place not in json.dumps([found, last])


def test_ram_is_given_back_with_the_cached_results(overlay: Server) -> None:
    graph = loaded(overlay)
    assert overlay.queue(graph).cached == set(graph)
    ask(overlay, "free", target="both")
    assert overlay.queue(graph).cached == set()


def test_while_a_prompt_runs_it_is_done_between_its_nodes(overlay: Server) -> None:
    state(overlay)
    graph = graphs.stock(CHECKPOINT, size=64, steps=12, seed=7)
    with Tab(overlay, "running") as tab:
        prompt = submit(overlay, graph, tab)
        overlay.wait_running("5", 1)
        clip = next(row for row in state(overlay)["models"] if row["kind"] == "clip")
        assert ask(overlay, "unload", id=clip["id"]) == {"queued": True}
        assert ask(overlay, "free", target="vram", keep=["BaseModel"]) == {"queued": True}
        run = overlay.finish(prompt)
        assert run.succeeded, run.error
        receipts = [it["receipt"] for it in tab.wait("lowtide.receipt", 2)]
    assert [it["by"] for it in receipts] == ["user", "user"]
    assert clip["name"] in receipts[0]["by_owner"] and receipts[0]["freed"] > 0
    kinds = {row["kind"] for row in state(overlay)["models"]}
    assert "clip" not in kinds and "model" in kinds


def test_a_cancelled_prompt_frees_what_was_asked_for(overlay: Server) -> None:
    state(overlay)
    graph = graphs.stock(CHECKPOINT, size=64, steps=200, seed=8)
    prompt = overlay.submit(graph)
    overlay.wait_running("5", 1)
    assert ask(overlay, "free", target="vram") == {"queued": True}
    overlay.interrupt()
    overlay.finish(prompt)
    counters = overlay.counters()
    assert (counters["allocated"], counters["models"]) == (0, [])
    assert overlay.queue(graphs.stock(CHECKPOINT, size=64, steps=1, seed=8)).succeeded


def test_a_level_for_the_next_runs_takes_effect_and_ends(overlay: Server) -> None:
    graph = graphs.native(CHECKPOINT, "none", size=64, steps=1, cleanup="off")
    selector = graphs.node_of(graph, "LowtideMemoryLevelSelector")
    first = overlay.queue(graph)
    assert "Level none" in first.text(graphs.REPORT)
    assert ask(overlay, "next", level="aggressive", budget_gb=None)["next"] == {
        "level": "aggressive",
        "budget_gb": None,
    }
    assert state(overlay)["next"]["level"] == "aggressive"
    second = overlay.queue(graph)
    assert second.succeeded, second.error
    assert "Level aggressive" in second.text(graphs.REPORT) and selector not in second.cached
    assert overlay.queue(graph).cached == set(graph), "nothing runs again"
    ask(overlay, "next", level=None, budget_gb=None)
    third = overlay.queue(graph)
    assert "Level none" in third.text(graphs.REPORT)
    assert overlay.queue(graph).cached == set(graph)


def test_whether_a_graph_fits_is_known_once_it_ran(overlay: Server) -> None:
    state(overlay)
    graph = loaded(overlay)
    run = state(overlay)["runs"][-1]
    found = ask(overlay, "fit", prompt=graph)
    assert found["fits"] is True and set(found["nodes"]) == set(graph)
    for span in run["nodes"]:
        answer = found["nodes"][span["node"]]
        assert answer["need"] == span["peak_allocated"] and answer["fits"] is True
        assert answer["why"].startswith("measured") and answer["remedy"] is None
    # Another size was never measured: predicted, or ComfyUI's estimate, for models it still has.
    larger = graphs.with_inputs(graph, {"EmptyLatentImage": {"width": 512, "height": 512}})
    found = ask(overlay, "fit", prompt=larger)["nodes"]
    sizes = {row["kind"]: row["size"] for row in state(overlay)["models"]}
    for node, kind, word in (("5", "model", "sampling"), ("6", "vae", "decoding")):
        known = (f"predicted for {word}", f"ComfyUI's estimate for {word}")
        assert found[node]["why"].startswith(known), found[node]
        assert found[node]["need"] > sizes[kind]
    assert found["2"]["why"].startswith("measured") and found["7"]["fits"] is None
    huge = graphs.with_inputs(graph, {"EmptyLatentImage": {"width": 16384, "height": 16384}})
    found = ask(overlay, "fit", prompt=huge)
    assert found["fits"] is False and "too much: add Lowtide" in found["nodes"]["6"]["remedy"]

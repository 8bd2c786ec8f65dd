"""The fit check of graphs whose models were never loaded, in a ComfyUI that has just started."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from lowtide.memory.profile_published import assumed
from lowtide.memory.profiles import NAME, key_of
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.comfyui import Installation
from lowtide.tests.hosts.fixtures import CAPACITY, CHECKPOINT, FOLDER, place_models
from lowtide.tests.hosts.overlay import ask, state
from lowtide.tests.hosts.server import Graph, Server

pytestmark = pytest.mark.host

ALIKE = 0.01
"""As ``test_plan_accuracy`` has it."""
SECONDS = 120
JUDGED = {"2": "encoding text", "3": "encoding text", "5": "sampling", "6": "decoding"}


@pytest.fixture(scope="module")
def started(
    installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A ComfyUI of this file's own. Its device's profile says that kernels need no scratch: the
    simulated accelerator counts none."""
    base = tmp_path_factory.mktemp(f"headers-{installation.version}")
    server = Server(installation, "npu", base, folder=FOLDER, capacity=CAPACITY)
    place_models(server)
    server.start()
    system = server.get("/system_stats")
    name = state(server)["devices"][0]["name"]
    profile = {**assumed(name).to_dict(), "workspace_factor": 0.0}
    folder = base / "user" / "__lowtide"
    folder.mkdir(parents=True, exist_ok=True)
    key = key_of(name, system["system"]["pytorch_version"])
    (folder / NAME).write_text(json.dumps({key: profile}), encoding="utf-8")
    yield server
    server.stop()


@pytest.fixture
def fresh(started: Server) -> Server:
    """That server with nothing loaded and nothing cached."""
    ask(started, "next", level=None, budget_gb=None)
    started.free()
    return started


def settled(server: Server, graph: Graph) -> dict[str, Any]:
    """The check's answer once nothing is pending."""
    until = time.monotonic() + SECONDS
    while (found := ask(server, "fit", prompt=graph))["pending"]:
        assert time.monotonic() < until, found
        time.sleep(0.5)
    return found["nodes"]


def measured(server: Server, graph: Graph) -> dict[str, int]:
    run = server.queue(graph)
    assert run.succeeded, run.error
    return {it["node"]: it["peak_allocated"] for it in state(server)["runs"][-1]["nodes"]}


def children(server: Server) -> list[psutil.Process]:
    assert server._process is not None
    return psutil.Process(server._process.pid).children()


def test_a_graph_is_predicted_before_anything_is_loaded(fresh: Server) -> None:
    graph = graphs.stock(CHECKPOINT, size=192, steps=2)
    begun = time.monotonic()
    first = ask(fresh, "fit", prompt=graph)
    assert time.monotonic() - begun < 2
    assert first["pending"] == len(JUDGED) and first["fits"] is None
    assert all(first["nodes"][node]["need"] is None for node in JUDGED)
    assert "being predicted" in first["nodes"]["5"]["why"]
    found = settled(fresh, graph)
    assert fresh.counters()["models"] == []
    peaks = measured(fresh, graph)
    for node, what in JUDGED.items():
        assert found[node]["why"].startswith(f"predicted for {what} from the headers"), found[node]
        assert "without Lowtide" in found[node]["why"] and found[node]["fits"] is True
        assert found[node]["need"] == pytest.approx(peaks[node], rel=ALIKE), (node, found, peaks)
    assert children(fresh) == []
    after = ask(fresh, "fit", prompt=graph)
    assert after["nodes"]["5"]["why"].startswith("measured")


def other(checkpoint: str, size: int, level: str | None = None, **more: Any) -> Graph:
    """A graph that no other test has run."""
    if level is None:
        return graphs.stock(checkpoint, size=size, steps=2)
    return graphs.native(checkpoint, level, size=size, **more)


@pytest.mark.parametrize("level", ["none", "balanced", "aggressive", "ultra", "auto"])
def test_at_the_level_of_its_own_nodes(fresh: Server, level: str) -> None:
    graph = other(CHECKPOINT, 224, level, cleanup="pressure")
    found = settled(fresh, graph)
    first = measured(fresh, graph)
    fresh.free()
    second = measured(fresh, graph)
    for node, answer in found.items():
        if answer["need"] is not None:
            print(
                level,
                node,
                answer["need"],
                first[node],
                second[node],
                answer["need"] / max(1, first[node]) - 1,
                answer["need"] / max(1, second[node]) - 1,
                answer["why"],
            )

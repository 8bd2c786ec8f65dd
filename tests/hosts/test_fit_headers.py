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
from lowtide.tests.hosts.finished import Run
from lowtide.tests.hosts.fixtures import (
    CAPACITY,
    CHECKPOINT,
    CHECKPOINT_KL,
    FOLDER,
    place_models,
)
from lowtide.tests.hosts.overlay import ask, state
from lowtide.tests.hosts.server import Graph, Server
from safetensors.numpy import load_file, save_file

pytestmark = [pytest.mark.host, pytest.mark.long]

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


def ran(server: Server, graph: Graph) -> Run:
    run = server.queue(graph)
    assert run.succeeded, run.error
    return run


def measured(server: Server) -> dict[str, int]:
    """Node -> peak in the last run."""
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
    ran(fresh, graph)
    peaks = measured(fresh)
    for node, what in JUDGED.items():
        assert found[node]["why"].startswith(f"predicted for {what} from the headers"), found[node]
        assert "without Lowtide" in found[node]["why"] and found[node]["fits"] is True
        assert found[node]["need"] == pytest.approx(peaks[node], rel=ALIKE), (node, found, peaks)
    assert children(fresh) == []
    after = ask(fresh, "fit", prompt=graph)
    assert after["nodes"]["5"]["why"].startswith("measured")


@pytest.mark.parametrize("level", ["aggressive", "auto"])
def test_at_the_level_of_the_next_run(fresh: Server, level: str) -> None:
    graph = graphs.native(CHECKPOINT, "auto", size=224, cleanup="pressure")
    if level != "auto":
        ask(fresh, "next", level=level, budget_gb=None)
    found = settled(fresh, graph)
    report = ran(fresh, graph).text(graphs.REPORT)
    peaks = measured(fresh)
    judged = {node: it for node, it in found.items() if it["why"].startswith("predicted")}
    assert len(judged) == 4
    for node, answer in judged.items():
        # At auto everything fits, and is as without Lowtide.
        assert f"at level {'none' if level == 'auto' else level}" in answer["why"], answer
        near = pytest.approx(peaks[node], rel=ALIKE)
        assert answer["need"] == near, (graph[node]["class_type"], answer, peaks[node])
    if level == "auto":
        assert "is the fastest plan that fits" in report, "the run met the check's traces"


def test_files_of_their_own(fresh: Server) -> None:
    models = fresh.base / "models"
    weights = load_file(models / "checkpoints" / CHECKPOINT)
    for folder, prefix, removed in (
        ("diffusion_models", "model.diffusion_model.", ""),
        ("text_encoders", "cond_stage_model.transformer.", "cond_stage_model.transformer."),
        ("vae", "first_stage_model.", "first_stage_model."),
    ):
        (models / folder).mkdir(exist_ok=True)
        part = {name.removeprefix(removed): it for name, it in weights.items() if prefix in name}
        save_file(part, models / folder / "part.safetensors")
    graph = graphs.stock(CHECKPOINT, size=160)
    for node, kind, inputs in (
        ("1", "UNETLoader", {"unet_name": "part.safetensors", "weight_dtype": "fp8_e4m3fn"}),
        ("8", "CLIPLoader", {"clip_name": "part.safetensors", "type": "stable_diffusion"}),
        ("9", "VAELoader", {"vae_name": "part.safetensors"}),
    ):
        graph[node] = {"class_type": kind, "inputs": inputs}
    for node, link in (("2", "8"), ("3", "8"), ("6", "9")):
        graph[node]["inputs"]["vae" if node == "6" else "clip"] = [link, 0]
    found = settled(fresh, graph)
    ran(fresh, graph)
    peaks = measured(fresh)
    for node in JUDGED:
        assert "from the headers of its files" in found[node]["why"], found[node]
        assert found[node]["need"] == pytest.approx(peaks[node], rel=ALIKE), (node, found, peaks)


def test_nothing_of_it_is_beside_a_running_prompt(fresh: Server) -> None:
    asked = graphs.stock(CHECKPOINT_KL, size=192)
    first = ask(fresh, "fit", prompt=asked)
    assert first["pending"] > 0, first
    until = time.monotonic() + 20
    while not children(fresh):
        assert time.monotonic() < until
        time.sleep(0.05)
    prompt = fresh.submit(graphs.stock(CHECKPOINT, size=64, steps=2000, seed=9))
    fresh.wait_running("5", 1)
    assert children(fresh) == [], "ended when the prompt began"
    found = ask(fresh, "fit", prompt=asked)
    assert found["pending"] == 0 and found["nodes"]["5"]["need"] is None
    assert "a prompt is running" in found["nodes"]["5"]["why"]
    assert children(fresh) == []
    fresh.interrupt()
    fresh.finish(prompt)
    fresh.free()
    assert settled(fresh, asked)["5"]["why"].startswith("predicted for sampling from the headers")


def test_a_damaged_file_is_said_to_be(fresh: Server) -> None:
    damaged = fresh.base / "models" / "checkpoints" / "damaged.safetensors"
    damaged.write_bytes(b"\x00" * 64)
    why = settled(fresh, graphs.stock(damaged.name))["5"]["why"]
    assert "damaged.safetensors is no safetensors file" in why, why
    assert str(fresh.base) not in why
    again = ask(fresh, "fit", prompt=graphs.stock(damaged.name))
    assert again["pending"] == 0 and again["nodes"]["5"]["why"] == why
    # Whole again, it is another file.
    damaged.unlink()
    damaged.symlink_to((fresh.base / "models" / "checkpoints" / CHECKPOINT).resolve())
    assert settled(fresh, graphs.stock(damaged.name))["5"]["need"] > 0

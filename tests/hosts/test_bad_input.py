"""Bad input and interrupted runs: a clear error or a clean stop, memory back, server alive."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.fixtures import CHECKPOINT, PIPELINE
from lowtide.tests.hosts.server import Graph, Refused, Run, Server

pytestmark = [pytest.mark.host, pytest.mark.devices("npu"), pytest.mark.long]


def at_baseline(server: Server) -> None:
    """Fails unless the device holds nothing, and the server still works."""
    figures = server.counters()
    assert server.alive and figures["idle"]
    if server.device != "cpu":
        assert figures["allocated"] == 0, figures


def selector(level: str = "none", budget_gb: float = 0.0) -> Graph:
    """Just the selector and its text: nothing else could fail."""
    return {
        "1": {
            "class_type": "LowtideMemoryLevelSelector",
            "inputs": {"level": level, "budget_gb": budget_gb, "cleanup": "off"},
        },
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
    }


def loader(folder: str, dtype: str = "auto") -> Graph:
    return graphs.with_inputs(
        graphs.diffusers(PIPELINE, "none", size=64, steps=1),
        {"LowtideLoadDiffusersPipeline": {"folder": folder, "dtype": dtype}},
    )


@pytest.mark.parametrize(
    "graph, words",
    [
        pytest.param(selector(level="extreme"), ("level", "extreme", "ultra"), id="unknown level"),
        pytest.param(selector(budget_gb=-1.0), ("budget_gb", "-1"), id="negative budget"),
        pytest.param(loader("no-such-folder"), ("folder", "no-such-folder"), id="unknown folder"),
        pytest.param(loader(PIPELINE, "int3"), ("dtype", "int3"), id="unknown dtype"),
    ],
)
def test_refused_before_anything_runs(server: Server, graph: Graph, words: tuple[str, ...]):
    with pytest.raises(Refused) as refusal:
        server.submit(graph)
    for word in words:
        assert word in str(refusal.value)
    at_baseline(server)


def failing(server: Server, graph: Graph, *words: str) -> Run:
    run = server.queue(graph)
    assert not run.succeeded
    for word in words:
        assert word in run.error, run.error
    at_baseline(server)
    return run


def test_a_budget_larger_than_the_device(server: Server):
    run = failing(server, selector(budget_gb=1000.0), "BudgetError", "1000.00 GB", "give at most")
    if server.device != "cpu":
        assert "4.00 GB" in run.error
        assert f"{server.device}:0" in run.error


def test_a_budget_below_the_largest_layer(server: Server):
    graph = graphs.native(CHECKPOINT, "ultra", budget_gb=0.01)
    failing(server, graph, "BudgetError", "largest layer", "at least")


def pickled(folder: Path) -> None:
    for weights in (folder / "unet").glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))


def without_weights(folder: Path) -> None:
    for weights in (folder / "vae").glob("*.safetensors"):
        weights.unlink()


def with_own_code(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["my_code", "EvilUNet"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "my_code.py").write_text("open('was_run', 'w')\nclass EvilUNet: pass\n")


def of_an_unknown_class(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')


def unreadable(folder: Path) -> None:
    (folder / "model_index.json").write_text("{not json")


@pytest.mark.parametrize(
    "change, words",
    [
        (pickled, ("safetensors",)),
        (without_weights, ("vae",)),
        (with_own_code, ("my_code",)),
        (of_an_unknown_class, ("NoSuchPipeline",)),
        (unreadable, ("model_index.json",)),
    ],
)
def test_a_folder_that_is_no_safe_pipeline(
    server: Server, change: Callable[[Path], None], words: tuple[str, ...]
):
    name = change.__name__
    folder = server.base / "models" / "diffusers" / name
    shutil.copytree(folder.parent / PIPELINE, folder)
    try:
        change(folder)
        failing(server, loader(name), "PipelineLoadError", name, *words)
    finally:
        shutil.rmtree(folder)
    assert not list(server.installation.root.glob("was_run"))


def test_a_folder_without_an_index_is_not_offered(server: Server):
    folder = server.base / "models" / "diffusers" / "notes"
    folder.mkdir(exist_ok=True)
    (folder / "readme.txt").write_text("no pipeline")
    info = server.object_info()["LowtideLoadDiffusersPipeline"]["input"]["required"]["folder"]
    folder.joinpath("readme.txt").unlink()
    folder.rmdir()
    offered = info[1]["options"] if info[0] == "COMBO" else info[0]
    assert PIPELINE in offered and "notes" not in offered


def test_sizes_a_pipeline_cannot_make(server: Server):
    graph = graphs.with_inputs(
        graphs.diffusers(PIPELINE, "balanced"), {"LowtideGenerate": {"width": 20}}
    )
    failing(server, graph, "ConfigError", "width", "20")


def interrupted(server: Server, graph: Graph, node_id: str) -> Run:
    prompt = server.submit(graph)
    server.wait_running(node_id, steps=1)
    server.interrupt()
    run = server.finish(prompt, timeout=30)
    assert run.messages("execution_interrupted"), run.status
    assert run.messages("execution_interrupted")[0]["node_id"] == node_id
    return run


@pytest.mark.devices("npu", "cuda")
def test_interrupted_while_sampling(server: Server):
    level = "aggressive"
    before = server.queue(graphs.native(CHECKPOINT, level, size=64))
    assert before.succeeded, before.error
    server.free()
    graph = graphs.native(CHECKPOINT, level, size=64, steps=500)
    interrupted(server, graph, graphs.node_of(graph, "KSampler"))
    server.free()
    at_baseline(server)
    after = server.queue(graphs.native(CHECKPOINT, level, size=64))
    assert after.succeeded, after.error
    assert np.array_equal(server.images(after), server.images(before))


def weights(server: Server) -> int:
    """Bytes the diffusers pipeline's weights may take on the device, with rounding."""
    folder = server.base / "models" / "diffusers" / PIPELINE
    return int(sum(it.stat().st_size for it in folder.rglob("*.safetensors")) * 1.02)


@pytest.mark.devices("npu", "cuda")
@pytest.mark.parametrize("level", ["none", "ultra"])
def test_interrupted_while_generating(server: Server, level: str):
    short = graphs.diffusers(PIPELINE, level, size=64)
    before = server.queue(short)
    assert before.succeeded, before.error
    graph = graphs.diffusers(PIPELINE, level, size=64, steps=500)
    interrupted(server, graph, graphs.node_of(graph, "LowtideGenerate"))
    if level == "none":
        # Here the weights stay between runs, interrupted or not; nothing else may, and no longer.
        if server.device != "cpu":
            assert server.counters()["allocated"] <= weights(server)
        server.free()
    at_baseline(server)
    after = server.queue(short)
    assert after.succeeded, after.error
    assert np.array_equal(server.images(after), server.images(before))

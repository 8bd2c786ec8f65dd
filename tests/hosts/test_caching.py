"""ComfyUI's cache with Lowtide's nodes in a graph: what did not change does not run again."""

from __future__ import annotations

import copy

import pytest
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.fixtures import CHECKPOINT, LORA, PIPELINE
from lowtide.tests.hosts.server import Graph, Server

pytestmark = [pytest.mark.host, pytest.mark.devices("npu"), pytest.mark.long]

SMALL = {"size": 64, "steps": 1}
LORA_ID = "30"


def everything(level: str, **selector: object) -> Graph:
    """The native example with a monitor too: all of Lowtide's nodes for ComfyUI's own models."""
    graph = graphs.native(CHECKPOINT, level, **SMALL, **selector)
    sampler = graphs.node_of(graph, "KSampler")
    if not any(node["class_type"] == "LowtideVRAMMonitor" for node in graph.values()):
        graph["80"] = {"class_type": "LowtideVRAMMonitor", "inputs": {"anything": [sampler, 0]}}
        redirect(graph, (sampler, 0), ("80", 0), but=("80",))
    return graph


def redirect(
    graph: Graph, old: tuple[str, int], new: tuple[str, int], but: tuple[str, ...] = ()
) -> None:
    """Has every node but those named take ``new`` where it took ``old``."""
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            if value == list(old) and node_id not in but:
                node["inputs"][name] = list(new)


def changed(graph: Graph, class_type: str, **inputs: object) -> Graph:
    return graphs.with_inputs(graph, {class_type: inputs})


def from_node(graph: Graph, node_id: str) -> set[str]:
    """A node and all that depends on it."""
    found = {node_id}
    while True:
        more = {
            other
            for other, node in graph.items()
            if any(isinstance(it, list) and it[0] in found for it in node["inputs"].values())
        }
        if more <= found:
            return found
        found |= more


def run(server: Server, graph: Graph) -> set[str]:
    """Runs the graph; the nodes that ComfyUI took from its cache."""
    finished = server.queue(graph)
    assert finished.succeeded, finished.error
    return finished.cached


@pytest.mark.parametrize("level", ["auto", "none", "balanced", "aggressive", "ultra"])
def test_an_unchanged_graph_runs_nothing(server: Server, level: str):
    graph = everything(level)
    assert run(server, graph) == set()
    for _ in range(2):
        assert run(server, graph) == set(graph)


def test_an_unchanged_graph_under_a_budget_runs_nothing(server: Server):
    graph = everything("none", budget_gb=200 / 1024, cleanup="always")
    assert run(server, graph) == set()
    assert run(server, graph) == set(graph)


def test_an_unchanged_diffusers_graph_runs_nothing(server: Server):
    graph = graphs.diffusers(PIPELINE, "balanced", **SMALL)
    assert run(server, graph) == set()
    assert run(server, graph) == set(graph)


def test_monitor_and_cleanup_act_again_in_a_run_of_cached_nodes(server: Server):
    graph = everything("none", cleanup="off")
    monitor = graphs.node_of(graph, "LowtideVRAMMonitor")
    cleanup = graphs.node_of(graph, "LowtideForceCleanup")
    first = server.queue(graph)
    second = server.queue(graph)
    assert second.cached == set(graph)
    # The first showed the models at work; now there are none.
    assert first.text(monitor) != second.text(monitor)
    assert first.text(cleanup) != second.text(cleanup)
    assert server.counters()["models"] == []


@pytest.mark.parametrize("level", ["auto (by VRAM size)", "aggressive", "ultra"])
def test_another_seed_runs_the_sampler_and_what_follows(server: Server, level: str):
    graph = everything(level)
    run(server, graph)
    sampler = graphs.node_of(graph, "KSampler")
    for seed in (7, 8):
        cached = run(server, changed(graph, "KSampler", seed=seed))
        assert cached == set(graph) - from_node(graph, sampler)
        assert graphs.node_of(graph, "LowtideOptimizePipeline") in cached


def test_another_budget_runs_the_selector_and_what_follows(server: Server):
    graph = everything("none", budget_gb=400 / 1024)
    run(server, graph)
    selector = graphs.node_of(graph, "LowtideMemoryLevelSelector")
    cached = run(server, changed(graph, "LowtideMemoryLevelSelector", budget_gb=300 / 1024))
    assert cached == set(graph) - from_node(graph, selector)
    assert graphs.node_of(graph, "CheckpointLoaderSimple") in cached


def test_another_lora_strength_does_not_run_optimize_pipeline(server: Server):
    graph = everything("aggressive")
    optimize = graphs.node_of(graph, "LowtideOptimizePipeline")
    for output in (0, 1):
        redirect(graph, (optimize, output), (LORA_ID, output))
    graph[LORA_ID] = {
        "class_type": "LoraLoader",
        "inputs": {
            "model": [optimize, 0],
            "clip": [optimize, 1],
            "lora_name": LORA,
            "strength_model": 0.8,
            "strength_clip": 0.8,
        },
    }
    run(server, graph)
    stronger = copy.deepcopy(graph)
    stronger[LORA_ID]["inputs"]["strength_model"] = 0.5
    cached = run(server, stronger)
    assert cached == set(graph) - from_node(graph, LORA_ID)
    assert optimize in cached

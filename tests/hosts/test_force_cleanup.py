"""Force Cleanup on every prompt: also when cached, and without running anything again."""

from __future__ import annotations

import pytest
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.fixtures import CHECKPOINT
from lowtide.tests.hosts.server import Graph, Server

pytestmark = pytest.mark.host


def loading_after_the_cleanup() -> Graph:
    """The native example, and then a sampler that works on what came out of its Force Cleanup.

    So a model is on the device when the prompt is over.
    """
    graph = graphs.native(CHECKPOINT, "none", cleanup="off")
    loader, cleanup = (
        graphs.node_of(graph, "CheckpointLoaderSimple"),
        graphs.node_of(graph, "LowtideForceCleanup"),
    )
    sampler = graph[graphs.node_of(graph, "KSampler")]
    del graph[graphs.LATENTS]
    graph["20"] = {
        "class_type": "VAEEncode",
        "inputs": {"pixels": [cleanup, 0], "vae": [loader, 2]},
    }
    graph["21"] = {
        "class_type": "KSampler",
        "inputs": {**sampler["inputs"], "latent_image": ["20", 0], "denoise": 0.5, "steps": 1},
    }
    graph["22"] = {
        "class_type": "SaveLatent",
        "inputs": {"samples": ["21", 0], "filename_prefix": "test"},
    }
    return graph


def test_a_cached_cleanup_cleans_again_and_nothing_else_runs(server: Server):
    graph = loading_after_the_cleanup()
    cleanup = graphs.node_of(graph, "LowtideForceCleanup")
    first = server.queue(graph)
    assert first.succeeded, first.error
    held = server.counters()
    assert "BaseModel" in {it["model"] for it in held["models"]}
    first_receipt = first.text(cleanup)
    assert first_receipt

    second = server.queue(graph)
    assert second.succeeded, second.error
    assert second.cached == set(graph)
    after = server.counters()
    assert after["models"] == []
    if server.device != "cpu":
        assert held["allocated"] > 0
        assert (after["allocated"], after["reserved"]) == (0, 0)
        # What is shown is this visit's receipt, not the cached one of the first run.
        assert second.text(cleanup) != first_receipt
    assert second.text(cleanup)


def small_graph(target: str) -> Graph:
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255},
        },
        "2": {
            "class_type": "LowtideForceCleanup",
            "inputs": {"anything": ["1", 0], "target": target},
        },
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }


@pytest.mark.parametrize("target, keeps", [("vram", True), ("ram", False), ("both", False)])
def test_ram_also_drops_cached_results(server: Server, target: str, keeps: bool):
    graph = small_graph(target)
    first = server.queue(graph)
    assert first.succeeded, first.error
    assert first.text("2")
    second = server.queue(graph)
    assert second.succeeded, second.error
    assert second.cached == (set(graph) if keeps else set())
    third = server.queue(graph)
    assert third.cached == (set(graph) if keeps else set())


def test_the_monitor_reads_again_when_cached(server: Server):
    graph = graphs.stock(CHECKPOINT, size=64, steps=1)
    graph["8"] = {"class_type": "LowtideVRAMMonitor", "inputs": {"anything": ["6", 0]}}
    graph["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}
    first = server.queue(graph)
    assert first.succeeded, first.error
    server.free(results=False)
    second = server.queue(graph)
    assert second.cached == set(graph)
    # The models that the first run showed are gone from the second's list.
    assert "BaseModel" in first.text("8")
    assert "BaseModel" not in second.text("8")

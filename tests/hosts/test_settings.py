"""Lowtide Memory Settings in a graph: attention, chunks and tiles of ComfyUI's own models."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.fixtures import CHECKPOINT
from lowtide.tests.hosts.server import Graph, Server

pytestmark = [pytest.mark.host, pytest.mark.long]

SETTINGS = "92"
DEFAULTS: dict[str, Any] = {
    "fp8_storage": "level",
    "keep_originals": "level",
    "attention": "level",
    "attention_slice_size": 0,
    "forward_chunk_size": 0,
    "vae_tiling": "level",
    "vae_tile_mode": "level",
    "vae_tile_size": 0,
    "vae_decode_chunk_size": 0,
}


def adjusted(level: str, **widgets: Any) -> Graph:
    """The native example with a settings node between selector and Optimize Pipeline."""
    graph = graphs.native(CHECKPOINT, level)
    selector = graphs.node_of(graph, "LowtideMemoryLevelSelector")
    graph[SETTINGS] = {
        "class_type": "LowtideMemorySettings",
        "inputs": {"config": [selector, 0], **DEFAULTS, **widgets},
    }
    optimize = graphs.node_of(graph, "LowtideOptimizePipeline")
    return graphs.with_inputs(graph, {graph[optimize]["class_type"]: {"config": [SETTINGS, 0]}})


@pytest.mark.parametrize("level", ["none", "ultra"])
def test_slices_and_chunks_change_latents_by_rounding(server: Server, level: str):
    plain = server.latents(server.queue(graphs.native(CHECKPOINT, level)))
    run = server.queue(adjusted(level, attention="sliced", forward_chunk_size=64))
    assert run.succeeded, run.error
    text = run.text(graphs.REPORT)
    assert "+ attention (model): sliced, half of the heads at once; text encoder and" in text
    assert "+ forward chunking (model): 64 tokens at a time through 4 feed-forward blocks" in text
    found = server.latents(run)
    assert not np.array_equal(found, plain)
    assert np.linalg.norm(found - plain) / np.linalg.norm(plain) < 0.01


def test_untouched_widgets_change_nothing(server: Server):
    plain = server.queue(graphs.native(CHECKPOINT, "balanced"))
    run = server.queue(adjusted("balanced"))
    assert run.succeeded, run.error
    assert np.array_equal(server.latents(run), server.latents(plain))
    # The first run has taught the second what it needs.
    said, expected = (
        re.sub(r"[\d.]+ MB predicted", "", it.text(graphs.REPORT)) for it in (run, plain)
    )
    assert said == expected


def test_a_value_that_cannot_work_names_the_remedy(server: Server):
    run = server.queue(adjusted("balanced", vae_tile_size=100))
    assert not run.succeeded
    assert "give a multiple of 8, for example 96" in str(run.error)

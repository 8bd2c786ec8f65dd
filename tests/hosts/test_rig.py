"""The rig itself: a stock graph runs, is counted and freed, without any node of the pack."""

from __future__ import annotations

import numpy as np
import pytest
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.fixtures import CHECKPOINT
from lowtide.tests.hosts.server import Refused, Server

pytestmark = pytest.mark.host


@pytest.mark.devices("npu", "cuda")
def test_stock_graph_is_counted_repeated_to_the_bit_and_freed(server: Server):
    graph = graphs.stock(CHECKPOINT)
    first = server.queue(graph)
    assert first.succeeded, first.error
    image = server.images(first)
    # A picture with something in it: clipped or flat ones would be equal to anything.
    assert image.std() > 10
    assert np.isin(image, (0, 255)).mean() < 0.2
    held = server.counters()
    assert {it["model"] for it in held["models"]} == {"BaseModel", "SD1ClipModel", "TAESD"}

    after = server.free()
    assert after["models"] == []
    weights = sum(it["resident"] for it in held["models"])
    assert weights <= held["allocated"] <= held["peak_allocated"] <= held["peak_reserved"]
    assert held["traffic"]["h2d"] >= weights
    assert (after["allocated"], after["reserved"]) == (0, 0)
    server.reset_counters()

    again = server.queue(graph)
    assert again.cached == set()
    assert np.array_equal(server.images(again), image)
    assert server.counters()["peak_allocated"] == held["peak_allocated"]


def test_a_graph_comfyui_refuses_is_told_apart_from_one_that_fails(server: Server):
    graph = graphs.with_inputs(graphs.stock(CHECKPOINT), {"KSampler": {"sampler_name": "none"}})
    with pytest.raises(Refused, match="sampler_name"):
        server.submit(graph)

"""On a running server: prompts under ``always`` leave nothing, interrupted ones neither."""

from __future__ import annotations

import pytest
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.fixtures import CHECKPOINT
from lowtide.tests.hosts.server import Graph, Server

pytestmark = [pytest.mark.host, pytest.mark.devices("npu", "cuda")]


def prompt(seed: int, steps: int) -> Graph:
    graph = graphs.native(CHECKPOINT, "none", cleanup="always", steps=steps, size=64)
    return graphs.with_inputs(graph, {"KSampler": {"seed": seed}})


def held(server: Server) -> tuple[int, int]:
    figures = server.counters()
    return figures["allocated"], figures["reserved"]


def test_prompts_and_interrupted_ones_leave_the_device_empty(server: Server):
    for seed, after in enumerate((0, 1, 3)):
        graph = prompt(seed, steps=60)
        sampler = graphs.node_of(graph, "KSampler")
        running = server.submit(graph)
        server.wait_running(sampler, steps=after)
        server.interrupt()
        run = server.finish(running)
        assert [it["node_id"] for it in run.messages("execution_interrupted")] == [sampler]
        assert held(server) == (0, 0), after

        run = server.queue(prompt(seed + 10, steps=1))
        assert run.succeeded, run.error
        assert held(server) == (0, 0)

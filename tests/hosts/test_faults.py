"""A server whose device runs out of memory in the middle of prompts goes on."""

from __future__ import annotations

import numpy as np
import pytest

from . import graphs
from .fixtures import CAPACITY, CHECKPOINT
from .server import Server

pytestmark = [pytest.mark.host, pytest.mark.long]

PLACES = 6
"""Allocations that fail, spread over the prompt: by turns alone, and on a device that is small."""
SMALL = "120M"
CLOSE = 2
"""Largest difference of pixels, in steps of 256, where they were computed in other pieces."""


@pytest.fixture
def faulty(server: Server):
    """A server whose device is whole again afterwards."""
    if server.device == "cpu":
        pytest.skip("host memory has no faults to inject")
    yield server
    server.post("/lowtide-test/fault", {"capacity": CAPACITY})


def graph(rescue: str) -> graphs.Graph:
    made = graphs.native(CHECKPOINT, "none", size=64, cleanup="always", rescue=rescue)
    del made[graphs.LATENTS]
    return made


def undisturbed(server: Server) -> tuple[np.ndarray, int]:
    """The picture, and how many allocations it takes."""
    server.queue(graph("on"))
    server.free()
    server.reset_counters()
    run = server.queue(graph("on"))
    assert run.succeeded, run.error
    count = server.counters()["traffic"]["allocations"]
    server.free()
    return server.images(run), count


@pytest.mark.devices("npu")
def test_rescued_prompts_finish_in_a_server(faulty: Server):
    expected, count = undisturbed(faulty)
    for place in range(PLACES):
        faulty.post("/lowtide-test/fault", {"capacity": CAPACITY})
        faulty.free()
        fault: dict[str, object] = {"k": 1 + count * place // PLACES}
        if place % 2:
            fault["capacity"] = SMALL
        faulty.post("/lowtide-test/fault", fault)
        run = faulty.queue(graph("on"))
        assert run.succeeded, (fault, run.error)
        assert np.abs(faulty.images(run).astype(int) - expected).max() <= CLOSE, fault
        after = faulty.counters()
        assert (after["allocated"], after["reserved"]) == (0, 0), fault


def test_the_queue_goes_on_after_a_prompt_that_failed(faulty: Server):
    expected, count = undisturbed(faulty)
    faulty.post("/lowtide-test/fault", {"k": count // 2})
    ids = [faulty.submit(graph("off")) for _ in range(2)]
    first, second = (faulty.finish(it) for it in ids)
    assert "OutOfMemoryError" in first.error
    assert second.succeeded, second.error
    assert np.array_equal(faulty.images(second), expected)
    after = faulty.counters()
    assert (after["allocated"], after["reserved"]) == (0, 0)

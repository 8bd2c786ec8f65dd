"""A real ComfyUI measures its device once, after a prompt, in the quiet, and keeps it in a file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lowtide.memory.profile import DeviceProfile
from lowtide.memory.profiles import NAME
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.comfyui import Installation
from lowtide.tests.hosts.fixtures import CAPACITY, CHECKPOINT, FOLDER, place_models
from lowtide.tests.hosts.server import Server

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def measuring(installation: Installation, tmp_path: Path) -> Iterator[Server]:
    """A ComfyUI of its own, whose device may be measured."""
    server = Server(installation, "npu", tmp_path, folder=FOLDER, capacity=CAPACITY, profile="on")
    place_models(server)
    server.start()
    yield server
    server.stop()


def test_the_device_is_measured_between_prompts(measuring: Server) -> None:
    file = measuring.base / "user" / "__lowtide" / NAME
    plain = measuring.queue(graphs.stock(CHECKPOINT))
    assert plain.succeeded, plain.error
    graph = graphs.native(CHECKPOINT, "balanced", cleanup="off")
    time.sleep(2)
    assert not file.exists(), "nothing of ours was asked for yet"
    run = measuring.queue(graph)
    assert run.succeeded, run.error
    before = measuring.counters()
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    (values,) = json.loads(file.read_text(encoding="utf-8")).values()
    found = DeviceProfile.from_dict(values)
    assert found.measured and "measured on this machine" in found.source
    after = measuring.counters()
    assert after["traffic"]["h2d_pinned"] > before["traffic"]["h2d_pinned"], "by copies"
    for name in ("allocated", "reserved"):
        assert after[name] <= before[name], (name, before, after)
    written = file.stat().st_mtime_ns
    again = measuring.queue(graphs.with_inputs(graph, {"KSampler": {"seed": 2}}))
    assert again.succeeded, again.error
    time.sleep(2.5)
    assert file.stat().st_mtime_ns == written and measuring.alive

"""A real ComfyUI's prompts go to a history in its user directory, which its server gives nobody."""

from __future__ import annotations

import json
import time
import urllib.error

import pytest
from lowtide.memory.history import History
from lowtide.memory.history_file import NAME
from lowtide.memory.history_rows import Row
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.fixtures import CHECKPOINT
from lowtide.tests.hosts.server import Server

pytestmark = [pytest.mark.host, pytest.mark.devices("npu")]

WORDS = "a sentence nobody shall know of"


def rows(history: History, least: int) -> list[Row]:
    """The rows, once there are so many: they are written after the prompt has ended."""
    deadline = time.monotonic() + 10
    while True:
        found = history._both(lambda table: table.all())
        if len(found) >= least or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def test_a_prompt_leaves_its_figures_and_nothing_else(server: Server) -> None:
    history = History(server.base / "user" / "__lowtide" / NAME)
    before = len(rows(history, 0))
    graph = graphs.native(CHECKPOINT, "aggressive")
    texts = [node for node in graph.values() if node["class_type"] == "CLIPTextEncode"]
    texts[0]["inputs"]["text"] = WORDS
    run = server.queue(graph)
    assert run.succeeded, run.error
    found = rows(history, before + 4)[before:]
    stages = [row.stage for row in found]
    assert sorted(set(stages)) == ["decoding", "denoising", "text_encoding"], stages
    assert stages.count("text_encoding") == 2
    sampled = found[stages.index("denoising")]
    assert (sampled.level, sampled.key.plan, sampled.outcome) == (
        "aggressive",
        "aggressive",
        "fits",
    )
    assert sampled.key.shapes == "1x4x16x16" and (sampled.measured or 0) > 0
    assert all(row.key.model and row.seconds for row in found)
    folder = (history.path or server.base).parent
    written = b"".join(it.read_bytes() for it in folder.rglob("*") if it.is_file())
    assert WORDS.encode() not in written and CHECKPOINT.encode() not in written
    assert json.dumps(history.summary())


def test_newer_servers_do_not_hand_the_folder_out(server: Server) -> None:
    if server.installation.version.startswith("0.3."):
        pytest.skip("this version treats every folder of its user directory alike")
    for path in (f"/userdata/..%2F__lowtide%2F{NAME}", "/userdata?dir=..%2F__lowtide"):
        with pytest.raises(urllib.error.HTTPError):
            server.fetch(path)

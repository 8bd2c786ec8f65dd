"""The peers' table: its processes, its references, and what is said of the absent."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lowtide.bench import peer_setups, peers
from lowtide.bench.measure import Row
from lowtide.bench.models import model_of
from lowtide.memory import child
from lowtide.memory.levels import OptimizationLevel
from lowtide.memory.units import MIB

WHERE = argparse.Namespace(device=None, simulate="npu", capacity="2G")


@pytest.fixture
def tiny_peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same bench on a pipeline of seconds, two systems and one that is not installed."""
    monkeypatch.setattr(peers, "DIFFUSERS", peer_setups.DIFFUSERS[:2])
    absent = peer_setups.Peer(
        "absent 1", peer_setups.DIFFUSERS[0].setup, "no_such_module", "absent"
    )
    again = dataclasses.replace(absent, name="absent 2")
    monkeypatch.setattr(peers, "PACKAGES", (absent, again))
    return dataclasses.replace(model_of("sdxl-small"), pipeline="tiny-sd15")


@pytest.mark.slow
def test_every_system_runs_in_a_process_of_its_own(tiny_peers: Any) -> None:
    bench = peers.bench_peers(
        tiny_peers,
        size=64,
        steps=2,
        dtype="float16",
        levels=[OptimizationLevel.ULTRA],
        where=WHERE,
    )
    assert [row.error for row in bench.rows] == [None, None, None]
    none, offload, ultra = bench.rows
    assert ultra.name == "Lowtide ultra"
    assert none.difference == offload.difference == 0
    assert none.peak_allocated > offload.peak_allocated > ultra.peak_allocated
    assert none.left_allocated > 20 * MIB
    assert (ultra.left_allocated, ultra.left_reserved) == (0, 0)
    assert offload.h2d > 20 * MIB > none.h2d
    text = bench.text()
    assert "Not installed, so not measured: absent." in text
    assert "CPU time" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert json.loads(json.dumps(bench.to_dict()))["not_installed"] == ["absent"]


def test_a_process_that_dies_is_the_rows_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = child.command("bench")[0]
    dies = [python, "-c", "import sys; sys.exit('no such device')"]
    monkeypatch.setattr(child, "command", lambda *_: dies)
    row, image = peers._measure("some system", [], tmp_path)
    assert image is None
    assert row.error == "its process ended with status 1: no such device"


def test_a_stale_result_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "row.json").write_text(json.dumps(Row("earlier", peak_allocated=1).to_dict()))
    torch.save(torch.zeros(1), tmp_path / "image.pt")
    python = child.command("bench")[0]
    monkeypatch.setattr(child, "command", lambda *_: [python, "-c", ""])
    row, image = peers._measure("later", [], tmp_path)
    assert (row.name, row.peak_allocated, image) == ("later", None, None)
    assert row.error == "its process ended with status 0: said nothing"


def test_diffusers_is_always_there_and_packages_are_looked_for() -> None:
    assert all(peer.installed for peer in peer_setups.DIFFUSERS)
    assert all(peer.module and peer.package for peer in peer_setups.PACKAGES)
    assert not peer_setups.Peer("x", peer_setups.DIFFUSERS[0].setup, "no_such_module").installed
    assert len(peer_setups.PEERS) == len(peer_setups.DIFFUSERS) + len(peer_setups.PACKAGES)

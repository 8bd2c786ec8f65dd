"""The benchmark of the overlay's samples: its shares, its verdict, and one short run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from lowtide.bench import sampling
from lowtide.bench.places import Place
from lowtide.memory.adapters.comfy.overlay import pulse
from lowtide.tests.hosts.comfyui import survey

FOUND = {
    "empty": 0.0005,
    "loaded": 0.001,
    "running": 0.002,
    "series": 0.0001,
    "state": 0.02,
    "bytes": 400.0,
}


def test_shares_are_parts_of_a_core_at_the_rates_of_the_thread() -> None:
    row = sampling.row_of("1.0", FOUND)
    assert row.running == pytest.approx(0.001 / pulse.RUNNING_SECONDS)
    assert row.idle == pytest.approx(0.001 / pulse.IDLE_SECONDS)
    assert row.series == pytest.approx(0.001)
    assert not row.exceeded


@pytest.mark.parametrize("worse", [{"loaded": 0.003}, {"empty": 0.003}, {"running": 0.006}])
def test_more_than_the_limit_is_said(worse: dict[str, float]) -> None:
    rows = [sampling.row_of("1.0", FOUND), sampling.row_of("2.0", {**FOUND, **worse})]
    found = sampling.SamplingBench("npu:0 (simulated)", rows)
    assert found.exceeded and "0.5% of a core while a prompt runs: passed" in found.text()
    assert json.loads(json.dumps(found.to_dict()))["rows"][1]["version"] == "2.0"


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.skipif(not survey()[0], reason="No ComfyUI found")
def test_the_limit_is_kept_in_comfyui(monkeypatch: pytest.MonkeyPatch) -> None:
    newest = survey()[0][-1]
    monkeypatch.setenv("COMFYUI_PATH", str(newest.root))
    device = SimpleNamespace(type="npu")
    place = Place(device, SimpleNamespace(flavour="npu"))  # only these are looked at
    found = sampling.bench(place, pairs=40, size=64, steps=2)
    assert [row.version for row in found.rows] == [newest.version]
    assert not found.exceeded, found.text()
    assert all(row.sample > 0 and row.measured > 0 and row.message > 200 for row in found.rows)

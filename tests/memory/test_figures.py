"""The monitor's figures are the device's own, and its text says the same."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest
import torch
from lowtide.memory import figures, verified
from lowtide.memory.handles import LoadedPipeline
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.units import MIB, format_bytes
from lowtide.tests.memory.toys import Pipeline

KEYS = {
    "device",
    "allocated",
    "reserved",
    "free",
    "total",
    "reserved_by_others",
    "pages",
    "peak",
    "host_total",
    "host_available",
    "host_rss",
    "models",
    "runs",
}


@pytest.fixture(autouse=True)
def no_leftovers() -> None:
    gc.collect()


def test_they_are_the_devices(accelerator: Any) -> None:
    kept = torch.zeros(3 * MIB, dtype=torch.uint8, device=accelerator.device)
    torch.zeros(8 * MIB, dtype=torch.uint8, device=accelerator.device)
    _, found = figures.read()
    assert set(found) == KEYS
    assert found["device"] == str(accelerator.device)
    assert found["allocated"] == accelerator.allocated >= kept.nbytes
    assert found["reserved"] == accelerator.reserved
    assert (found["free"], found["total"]) == (accelerator.free, accelerator.capacity)
    assert found["peak"] == accelerator.peak_allocated >= found["allocated"] + 8 * MIB
    assert found["host_total"] >= found["host_available"] > 0
    assert found["host_rss"] > 0
    json.dumps(found)


def test_the_text_says_the_same(accelerator: Any) -> None:
    text, found = figures.read()
    lines = text.splitlines()
    assert lines[0].startswith(f"{accelerator.device} (")
    for key in ("allocated", "reserved", "free"):
        assert f"{key} {format_bytes(found[key])}" in lines[1]
    assert lines[1].endswith(f"of {format_bytes(found['total'])}")
    assert lines[2] == f"  peak so far {format_bytes(found['peak'])}"
    assert lines[3].startswith("Host: ")


def test_loaded_pipelines_are_listed_with_what_they_hold(accelerator: Any) -> None:
    known = len(figures.read()[1]["models"])
    loaded = LoadedPipeline(Pipeline(), "mine")
    (model,) = [m for m in figures.read()[1]["models"] if m["name"] == "mine"]
    assert (model["on_device"], model["size"]) == (0, 7 * MIB + 12)
    loaded.pipeline.unet.to(accelerator.device)
    text, found = figures.read()
    (model,) = [m for m in found["models"] if m["name"] == "mine"]
    assert model["on_device"] == 4 * MIB + 4
    assert f"  mine: 4.0 MB of 7.0 MB on {accelerator.device}" in text.splitlines()
    del loaded
    gc.collect()
    assert len(figures.read()[1]["models"]) == known


def test_without_models_it_says_none(monkeypatch: pytest.MonkeyPatch, accelerator: Any) -> None:
    monkeypatch.setattr(figures, "_models", lambda device: [])
    verified.begin()
    assert figures.read()[0].endswith("Loaded models: none")


def test_on_the_cpu_the_device_readings_are_unknown_and_not_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lowtide.memory.device import snapshot

    monkeypatch.setattr(figures, "snapshot", lambda _: snapshot("cpu"))
    text, found = figures.read()
    assert found["device"] == "cpu"
    assert found["allocated"] is None and found["reserved"] is None and found["peak"] is None
    assert "allocated unknown, reserved unknown" in text


def test_a_configuration_in_force_does_not_disturb_the_reading(accelerator: Any) -> None:
    from lowtide.tests.memory.tiny import used

    loaded = LoadedPipeline(used(), "real")
    loaded.apply(MemoryOptimizationConfig.from_level("none"), accelerator.device)
    (model,) = [m for m in figures.read()[1]["models"] if m["name"] == "real"]
    assert model["on_device"] >= model["size"] == loaded.size
    loaded.undo()
    (model,) = [m for m in figures.read()[1]["models"] if m["name"] == "real"]
    assert model["on_device"] == 0

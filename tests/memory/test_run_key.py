"""The names runs are kept under: the same for whoever predicts and whoever measures."""

from __future__ import annotations

import pytest
from lowtide.memory.device import DeviceSnapshot
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.run_key import (
    gpu_name,
    level_of,
    model_name,
    pipeline_name,
    plan_name,
    positions,
    shape_name,
)
from lowtide.memory.units import GIB


def test_names() -> None:
    reading = DeviceSnapshot("cuda:0", "cuda", "RTX", 8 * GIB, None, None, None, None, False)
    assert gpu_name(reading, "2.9.0") == "RTX, 8.00 GB, cuda, torch 2.9.0"
    assert model_name("SDXL", 5 * GIB) == "SDXL, 5.00 GB"
    assert pipeline_name("FluxPipeline", 1_500_000) == "FluxPipeline, 1.5 million parameters"
    assert shape_name((1, 4, 128, 64)) == "1x4x128x64"


@pytest.mark.parametrize(
    ("shape", "count"),
    [((1, 4, 128, 64), 128 * 64), ((2, 16, 5, 8, 8), 2 * 5 * 64), ((3, 4), 3), ((), 1)],
)
def test_channels_are_no_positions(shape: tuple[int, ...], count: int) -> None:
    assert positions(shape) == count


@pytest.mark.parametrize("level", ["none", "balanced", "aggressive", "ultra"])
def test_a_preset_is_called_by_its_level(level: str) -> None:
    config = MemoryOptimizationConfig.from_level(level)
    assert plan_name(config) == level == level_of(plan_name(config, patched=True))
    assert plan_name(config, patched=True) == f"{level}, patched"


def test_what_changes_a_stage_is_in_the_name_and_nothing_else() -> None:
    config = MemoryOptimizationConfig.from_level(
        "ultra", attention="sliced", vae_tile_size=128, cleanup="pressure", after_step=True,
        history=False, keep_originals=False, budget_bytes=4 * GIB,
    )  # fmt: skip
    plan = plan_name(config)
    assert plan == "ultra, vae_tile_size=128, attention=sliced, budget_bytes=4.00 GB"
    assert level_of(plan) == "ultra"

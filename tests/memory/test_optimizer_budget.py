"""A budget chooses the gentlest level that is estimated to fit."""

from __future__ import annotations

import re
from typing import Any

import pytest
from lowtide.memory.adapters.diffusers import modules_of
from lowtide.memory.adapters.synthetic import build, run
from lowtide.memory.errors import BudgetError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.optimizer import MemoryOptimizer
from lowtide.memory.strategies.budget import estimate
from lowtide.memory.units import GIB, parse_bytes
from lowtide.tests.memory.tiny import TINY, Untouched

pytestmark = pytest.mark.usefixtures("estimates_only")

LEVELS = ("none", "balanced", "aggressive", "ultra")


def needs(pipe: Any) -> dict[str, int]:
    parts = modules_of(pipe)
    configs = {level: MemoryOptimizationConfig.from_level(level) for level in LEVELS}
    return {level: estimate(config, pipe, parts).total for level, config in configs.items()}


def under(budget: int, level: str = "auto", **more: Any) -> MemoryOptimizer:
    return MemoryOptimizer(MemoryOptimizationConfig.from_level(level, budget_bytes=budget, **more))


@pytest.mark.parametrize("name", TINY)
def test_auto_takes_the_gentlest_level_that_fits(accelerator: Any, name: str) -> None:
    pipe = build(name, "float32")
    need = needs(pipe)
    assert need["none"] > need["balanced"] > need["aggressive"] >= need["ultra"]
    for level in ("none", "balanced", "aggressive"):
        with under(need[level]) as optimizer:
            optimizer.optimize_pipeline(pipe)
            assert optimizer.config.level.value == level
            assert f"level {level}, estimated to need" in optimizer.report.text()


@pytest.mark.parametrize("name", ["tiny-sd15", "tiny-sdxl"])
def test_the_estimate_is_near_what_a_run_needs(accelerator: Any, name: str) -> None:
    pipe = build(name, "float32")
    base = accelerator.allocated
    for need in sorted(set(needs(pipe).values()), reverse=True)[:2]:
        with under(need) as optimizer:
            optimizer.optimize_pipeline(pipe)
            run(pipe, steps=1)
            accelerator.reset_peaks()
            run(pipe)
            assert 0.5 * need < accelerator.peak_allocated - base < 1.1 * need


def test_a_level_asked_for_by_name_is_never_weakened(accelerator: Any) -> None:
    pipe = build("tiny-sd15", "float32")
    with under(GIB, "aggressive") as optimizer:
        optimizer.optimize_pipeline(pipe)
        assert optimizer.config.level.value == "aggressive"
    with under(needs(pipe)["aggressive"], "balanced") as optimizer:
        optimizer.optimize_pipeline(pipe)
        assert optimizer.config.level.value == "aggressive"


def test_settings_made_by_hand_are_carried_along(accelerator: Any) -> None:
    pipe = build("tiny-sd15", "float32")
    with under(
        needs(pipe)["aggressive"], "balanced", vae_tile_overlap=0.125, cleanup="off"
    ) as optimizer:
        optimizer.optimize_pipeline(pipe)
        assert optimizer.config.level.value == "aggressive"
        assert (optimizer.config.vae_tile_overlap, optimizer.config.cleanup) == (0.125, "off")


def test_the_smallest_budget_that_would_do_is_named_and_does(accelerator: Any) -> None:
    pipe = build("tiny-sd15", "float32")
    before = Untouched(pipe)
    with pytest.raises(BudgetError) as caught:
        under(1 << 20).optimize_pipeline(pipe)
    before.check()
    named = re.search(r"give ([\d.]+ [KMG]B) or more", str(caught.value))
    assert named is not None
    with under(parse_bytes(named[1])) as optimizer:
        optimizer.optimize_pipeline(pipe)


def test_a_budget_larger_than_the_device_is_refused(accelerator: Any) -> None:
    accelerator(capacity="1G")
    with pytest.raises(BudgetError, match="larger than the device"):
        under(2 * GIB, "balanced").optimize_pipeline(build("tiny-sd15", "float32"))


@pytest.mark.parametrize("level", ["none", "auto"])
def test_a_setting_of_the_chosen_level_can_be_changed(accelerator: Any, level: str) -> None:
    pipe = build("tiny-sd15", "float32")
    with under(needs(pipe)["balanced"], level) as optimizer:
        optimizer.optimize_pipeline(pipe)
        optimizer.config.vae_tile_size = 64
        optimizer.optimize_pipeline(pipe)
        assert optimizer.config.level.value == "balanced"
        assert (optimizer.config.vae_tile_size, optimizer.config.offload) == (64, "component")
        assert optimizer.config.requested_level.value == level

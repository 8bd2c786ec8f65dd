"""A budget is planned: a share of the device for each component, or the level that fits."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from lowtide.memory.adapters.diffusers import modules_of
from lowtide.memory.adapters.synthetic import build, run
from lowtide.memory.cleanup import release
from lowtide.memory.errors import BudgetError, TargetError
from lowtide.memory.handles import weight_bytes
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.optimizer import MemoryOptimizer
from lowtide.memory.planner.work import Work
from lowtide.memory.strategies.budget import estimate
from lowtide.memory.units import GIB, parse_bytes
from lowtide.tests.memory.tiny import TINY, Untouched

WORK = Work(128, 128, steps=2)
LEVELS = ("none", "balanced", "aggressive", "ultra")


def needs(pipe: Any) -> dict[str, int]:
    parts = modules_of(pipe)
    configs = {level: MemoryOptimizationConfig.from_level(level) for level in LEVELS}
    return {level: estimate(config, pipe, parts).total for level, config in configs.items()}


def under(budget: int, level: str = "auto", **more: Any) -> MemoryOptimizer:
    return MemoryOptimizer(MemoryOptimizationConfig.from_level(level, budget_bytes=budget, **more))


@pytest.mark.parametrize("name", TINY)
def test_a_budget_is_planned_and_kept(accelerator: Any, name: str) -> None:
    pipe = build(name, "float32")
    expected = run(pipe.to(accelerator.device))
    pipe.to("cpu")
    before = Untouched(pipe)
    for part in (0.9, 0.5):
        budget = int(part * weight_bytes(pipe))
        with under(budget) as optimizer:
            optimizer.optimize_pipeline(pipe, WORK)
            assert optimizer.config.offload == "planned"
            assert optimizer.config.requested_level.value == "auto"
            assert "predicted to take" in optimizer.report.text()
            release(device=accelerator.device)
            accelerator.reset_peaks()
            image = run(pipe)
            assert accelerator.peak_allocated <= budget
            prediction = optimizer.plan.prediction
            assert accelerator.peak_allocated <= prediction.peak_allocated * 1.01
            assert torch.equal(image, expected)
        before.check()


def test_what_fits_as_it_is_stays_as_it_is(accelerator: Any) -> None:
    pipe = build("tiny-sd15", "float32")
    with under(GIB) as optimizer:
        optimizer.optimize_pipeline(pipe, WORK)
        assert (optimizer.config.level.value, optimizer.config.offload) == ("none", "none")
        assert optimizer.placed


def test_the_device_is_measured_at_its_first_use(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr("lowtide.memory.profiles.measured", asked.append)
    pipe = build("tiny-sd15", "float32")
    for budget, more in ((GIB, 1), (None, 0)):
        asked.clear()
        with under(budget) as optimizer:  # type: ignore[arg-type]
            optimizer.optimize_pipeline(pipe, WORK)
        assert asked == [accelerator.device] * more
    monkeypatch.setattr("lowtide.memory.adapters.comfy.present", lambda: True)
    with under(GIB) as optimizer:
        optimizer.optimize_pipeline(pipe, WORK)
    assert asked == [], "no prompt waits for it"


def test_another_run_is_planned_anew(accelerator: Any) -> None:
    pipe = build("tiny-sd15", "float32")
    budget = int(0.6 * weight_bytes(pipe))
    with under(budget) as optimizer:
        optimizer.optimize_pipeline(pipe, WORK)
        first = optimizer.plan
        optimizer.optimize_pipeline(pipe, WORK)
        optimizer.optimize_pipeline(pipe)
        assert optimizer.plan is first
        optimizer.optimize_pipeline(pipe, replace(WORK, width=192, height=192))
        assert optimizer.plan is not first
        assert optimizer.config.budget_bytes == budget


def test_a_level_asked_for_by_name_is_never_weakened(accelerator: Any) -> None:
    pipe = build("tiny-sd15", "float32")
    with under(GIB, "aggressive") as optimizer:
        optimizer.optimize_pipeline(pipe, WORK)
        assert optimizer.config.level.value == "aggressive"
        assert optimizer.config.offload == "sequential"
    with under(int(0.4 * weight_bytes(pipe)), "balanced") as optimizer:
        optimizer.optimize_pipeline(pipe, WORK)
        assert optimizer.config.offload == "planned"


def test_fp8_is_taken_only_where_it_was_agreed_to(accelerator: Any) -> None:
    pipe = build("tiny-sd15", "float32")
    budget = int(0.4 * weight_bytes(pipe))
    with under(budget, "none") as optimizer:
        optimizer.optimize_pipeline(pipe, WORK)
        assert optimizer.plan.fp8 == () and not optimizer.config.fp8_storage
    with under(budget, "none", fp8_storage=True) as optimizer:
        optimizer.optimize_pipeline(pipe, WORK)
        assert optimizer.plan.fp8 == ("unet",)
        run(pipe)


def test_a_pipeline_that_cannot_be_traced_is_kept_by_estimates(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise TargetError("nobody knows how it is called")

    monkeypatch.setattr("lowtide.memory.adapters.diffusers_traces.call_of", fails)
    pipe = build("tiny-sd15", "bfloat16")
    need = needs(pipe)
    for level in ("none", "balanced", "aggressive"):
        with under(need[level]) as optimizer:
            optimizer.optimize_pipeline(pipe)
            assert optimizer.plan is None
            assert optimizer.config.level.value == level
            assert f"level {level}, estimated to need" in optimizer.report.text()


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
def test_a_setting_of_what_was_planned_can_be_changed(accelerator: Any, level: str) -> None:
    pipe = build("tiny-sd15", "float32")
    with under(int(0.6 * weight_bytes(pipe)), level) as optimizer:
        optimizer.optimize_pipeline(pipe, WORK)
        assert not optimizer.config.enable_vae_tiling
        optimizer.config.enable_vae_tiling = True
        optimizer.config.vae_tile_size = 64
        optimizer.optimize_pipeline(pipe, WORK)
        assert (optimizer.config.vae_tile_size, optimizer.config.offload) == (64, "planned")
        assert optimizer.config.requested_level.value == level
        run(pipe)

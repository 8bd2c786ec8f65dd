"""A loaded pipeline has one optimisation at a time, and gives everything back when asked."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from lowtide.memory.adapters.diffusers import existing_offload
from lowtide.memory.adapters.synthetic import build, component_bytes
from lowtide.memory.errors import BudgetError
from lowtide.memory.handles import LoadedPipeline, PipelineHandle, live_pipelines, weight_bytes
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.tests.memory.tiny import Untouched, held, now, small_run, used

LEVELS = ("none", "balanced", "aggressive", "ultra")


def config(level: str, **more: Any) -> MemoryOptimizationConfig:
    return MemoryOptimizationConfig.from_level(level, **more)


@pytest.fixture
def loaded(accelerator: Any) -> LoadedPipeline:
    return LoadedPipeline(used(), "tiny")


def test_it_knows_its_name_and_size(loaded: LoadedPipeline) -> None:
    sizes = component_bytes(loaded.pipeline)
    assert loaded.size == weight_bytes(loaded.pipeline) == sum(sizes.values())
    assert loaded.name == "tiny" and loaded.optimizer is None


def test_the_same_configuration_is_applied_once(accelerator: Any, loaded: LoadedPipeline) -> None:
    first = loaded.apply(config("aggressive"), accelerator.device)
    assert loaded.apply(config("aggressive"), accelerator.device) is first
    assert loaded.apply(config("aggressive", after_step=True), accelerator.device) is not first
    assert first.pipeline is None


def test_two_handles_share_one_pipeline_and_take_turns(
    accelerator: Any, loaded: LoadedPipeline
) -> None:
    before = Untouched(loaded.pipeline)
    one = PipelineHandle(loaded, config("balanced"), accelerator.device)
    other = PipelineHandle(loaded, config("ultra"), accelerator.device)
    assert one.pipeline is other.pipeline is loaded.pipeline
    for handle, kind in ((one, "component"), (other, "group"), (one, "component")):
        optimizer = handle.activate()
        assert optimizer is one.optimizer is other.optimizer
        assert existing_offload(loaded.pipeline).kind == kind
    loaded.undo()
    assert one.optimizer is None
    before.check()
    loaded.undo()


def test_changing_a_configuration_later_does_not_reach_what_is_in_force(
    accelerator: Any, loaded: LoadedPipeline
) -> None:
    mine = config("balanced")
    optimizer = loaded.apply(mine, accelerator.device)
    mine.cleanup = "off"
    assert optimizer.config.cleanup == "pressure"
    assert loaded.apply(mine, accelerator.device) is not optimizer


def test_a_configuration_that_fails_leaves_the_pipeline_plain(
    accelerator: Any, loaded: LoadedPipeline
) -> None:
    before = Untouched(loaded.pipeline)
    loaded.apply(config("balanced"), accelerator.device)
    with pytest.raises(BudgetError):
        loaded.apply(config("ultra", budget_bytes=1), accelerator.device)
    assert loaded.optimizer is None
    before.check()


@pytest.mark.parametrize("level", LEVELS)
def test_a_release_leaves_nothing_and_the_next_run_is_the_same(
    accelerator: Any, loaded: LoadedPipeline, level: str
) -> None:
    base = held(accelerator)
    loaded.apply(config(level), accelerator.device)
    expected = small_run(loaded.pipeline)
    receipt = loaded.release(accelerator.device)
    assert now(accelerator) == base
    assert (receipt.remaining, receipt.errors) == (0, ())
    assert loaded.on_device(accelerator.device) == 0
    assert (loaded.optimizer is None) == (level == "none")
    loaded.apply(config(level), accelerator.device)
    assert torch.equal(small_run(loaded.pipeline), expected)
    loaded.undo()


def test_the_bytes_on_the_device_are_counted(accelerator: Any, loaded: LoadedPipeline) -> None:
    assert loaded.on_device(accelerator.device) == 0
    loaded.apply(config("none"), accelerator.device)
    assert loaded.size <= loaded.on_device(accelerator.device) < loaded.size + 4096
    loaded.undo()


@pytest.mark.parametrize(
    ("cleanup", "on_exit", "released"),
    [("always", True, True), ("always", False, False), ("off", True, False)],
)
def test_after_a_run_the_policy_decides(
    accelerator: Any, loaded: LoadedPipeline, cleanup: str, on_exit: bool, released: bool
) -> None:
    base = held(accelerator)
    wanted = config("none", cleanup=cleanup, on_exit=on_exit)
    loaded.apply(wanted, accelerator.device)
    small_run(loaded.pipeline)
    receipt = loaded.settle(wanted, accelerator.device)
    assert (receipt is not None) == released
    assert (now(accelerator) == base) == released
    loaded.undo()


def test_under_pressure_it_is_released(accelerator: Any, loaded: LoadedPipeline) -> None:
    wanted = config("none", cleanup="pressure")
    loaded.apply(wanted, accelerator.device)
    assert loaded.settle(wanted, accelerator.device) is None
    accelerator(capacity=accelerator.reserved + (4 << 20))
    assert loaded.settle(wanted, accelerator.device) is not None
    assert loaded.on_device(accelerator.device) == 0


@pytest.mark.parametrize("level", LEVELS)
def test_a_run_that_broke_off_leaves_what_was_there_before_it(
    accelerator: Any, loaded: LoadedPipeline, level: str
) -> None:
    wanted = config(level, cleanup="off", after_step=False)
    loaded.apply(wanted, accelerator.device)
    small_run(loaded.pipeline)
    loaded.settle(wanted, accelerator.device)
    before = held(accelerator)[0]
    accelerator.fail_allocation(150)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        small_run(loaded.pipeline)
    assert loaded.settle(wanted, accelerator.device, caught.value) is not None
    assert accelerator.allocated <= before
    loaded.undo()


def test_a_first_run_that_broke_off_leaves_no_table_of_the_scheduler(accelerator: Any) -> None:
    wanted = config("none", cleanup="off")
    fresh = LoadedPipeline(build("tiny-sdxl", "float16"), "fresh")
    fresh.apply(wanted, accelerator.device)
    before = held(accelerator)[0]

    def stop(*_: Any) -> Any:
        raise RuntimeError("as planned")

    with pytest.raises(RuntimeError, match="as planned") as caught:
        small_run(fresh.pipeline, callback_on_step_end=stop)
    fresh.settle(wanted, accelerator.device, caught.value)
    assert accelerator.allocated == before
    small_run(fresh.pipeline)
    fresh.undo()


def test_live_pipelines_are_listed_by_name_and_not_kept(accelerator: Any) -> None:
    gc.collect()
    others = live_pipelines()
    two = LoadedPipeline(used(), "b")
    one = LoadedPipeline(used(), "a")
    assert [p for p in live_pipelines() if p not in others] == [one, two]
    del one, two
    gc.collect()
    assert live_pipelines() == others


def test_what_cpu_mode_placed_is_on_the_device_in_every_run(
    accelerator: Any, loaded: LoadedPipeline
) -> None:
    wanted = config("balanced", cpu_mode=True, cleanup="always")
    handle = PipelineHandle(loaded, wanted, accelerator.device)
    for _ in range(2):
        handle.activate()
        assert loaded.pipeline.unet.device == accelerator.device
        small_run(loaded.pipeline)
        loaded.settle(wanted, accelerator.device)
        assert loaded.on_device(accelerator.device) == 0
    loaded.undo()

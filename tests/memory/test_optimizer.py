"""MemoryOptimizer: applied once, changed, taken back to the bit, whoever else had a hand in it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from lowtide.memory.adapters import pipelines
from lowtide.memory.adapters.diffusers import existing_offload
from lowtide.memory.cleanup import release
from lowtide.memory.errors import ConfigError, DeviceError, LowtideError, TargetError
from lowtide.memory.levels import MemoryOptimizationConfig, OptimizationLevel
from lowtide.memory.optimizer import MemoryOptimizer
from lowtide.tests.memory.tiny import TINY, Untouched, held, now, small_run, used

LEVELS = ("none", "balanced", "aggressive", "ultra")


@pytest.fixture
def pipe(accelerator: Any) -> Any:
    return used()


# -- undo --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("level", LEVELS)
def test_the_undo_is_exact(accelerator: Any, name: str, level: str) -> None:
    pipe = used(name)
    before, base = Untouched(pipe), held(accelerator)
    optimizer = MemoryOptimizer(level)
    assert optimizer.optimize_pipeline(pipe) is pipe
    small_run(pipe)
    optimizer.undo()
    before.check()
    assert now(accelerator) == base
    assert optimizer.pipeline is None and optimizer.report is not None
    optimizer.undo()
    before.check()


def test_an_exception_in_the_block_undoes_too(accelerator: Any, pipe: Any) -> None:
    before, base = Untouched(pipe), held(accelerator)
    with pytest.raises(ZeroDivisionError), MemoryOptimizer("ultra") as optimizer:
        optimizer.optimize_pipeline(pipe)
        small_run(pipe)
        _ = 1 / 0
    before.check()
    assert now(accelerator) == base


def test_a_run_that_broke_off_is_undone_exactly(accelerator: Any, pipe: Any) -> None:
    before, base = Untouched(pipe), held(accelerator)
    optimizer = MemoryOptimizer("ultra")
    optimizer.optimize_pipeline(pipe)
    accelerator.fail_allocation(200)
    with pytest.raises(torch.OutOfMemoryError):
        small_run(pipe)
    optimizer.undo()
    before.check()
    assert held(accelerator) == base


# -- again, changed, elsewhere -----------------------------------------------------------------


def test_the_same_configuration_again_does_nothing(accelerator: Any, pipe: Any) -> None:
    optimizer = MemoryOptimizer("balanced")
    optimizer.optimize_pipeline(pipe)
    report, inside = optimizer.report, Untouched(pipe)
    accelerator.reset_counters()
    optimizer.optimize_pipeline(pipe)
    assert optimizer.report is report
    inside.check()
    assert accelerator.counters()["h2d"] == 0


def test_a_placed_pipeline_is_brought_back_after_a_release(accelerator: Any, pipe: Any) -> None:
    before, optimizer = Untouched(pipe), MemoryOptimizer("none")
    optimizer.optimize_pipeline(pipe)
    expected = small_run(pipe)
    release(optimizer)
    optimizer.optimize_pipeline(pipe)
    assert pipe.unet.device == accelerator.device
    assert torch.equal(small_run(pipe), expected)
    optimizer.undo()
    before.check()


def test_a_changed_configuration_is_applied_anew(accelerator: Any, pipe: Any) -> None:
    before = Untouched(pipe)
    optimizer = MemoryOptimizer("balanced")
    optimizer.optimize_pipeline(pipe)
    assert existing_offload(pipe).kind == "component"
    optimizer.config.offload = "sequential"
    optimizer.optimize_pipeline(pipe)
    assert existing_offload(pipe).kind == "sequential"
    optimizer.config = MemoryOptimizationConfig.from_level("ultra")
    optimizer.optimize_pipeline(pipe)
    assert existing_offload(pipe).kind == "group"
    assert optimizer.report.level is OptimizationLevel.ULTRA
    optimizer.undo()
    before.check()


def test_another_pipeline_takes_the_place_of_the_first(accelerator: Any, pipe: Any) -> None:
    before, other = Untouched(pipe), used("tiny-sdxl")
    optimizer = MemoryOptimizer("ultra")
    optimizer.optimize_pipeline(pipe)
    optimizer.optimize_pipeline(other)
    before.check()
    assert optimizer.pipeline is other
    optimizer.undo()


def test_the_second_of_two_optimizers_takes_over(accelerator: Any, pipe: Any) -> None:
    before = Untouched(pipe)
    first, second = MemoryOptimizer("ultra"), MemoryOptimizer("balanced")
    first.optimize_pipeline(pipe)
    second.optimize_pipeline(pipe)
    assert first.pipeline is None and second.pipeline is pipe
    assert existing_offload(pipe).kind == "component"
    first.undo()
    assert existing_offload(pipe).kind == "component"
    second.undo()
    before.check()


@pytest.mark.parametrize("level", ["balanced", "aggressive", "ultra"])
def test_an_optimised_pipeline_can_be_collected(accelerator: Any, level: str) -> None:
    base = held(accelerator)
    pipe, optimizer = used(), MemoryOptimizer(level)
    optimizer.optimize_pipeline(pipe)
    small_run(pipe)
    refs = [weakref.ref(pipe), weakref.ref(pipe.unet), weakref.ref(optimizer)]
    del pipe, optimizer
    assert held(accelerator) == base
    assert [ref() for ref in refs] == [None, None, None]


# -- what was there before ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["component", "sequential", "group"])
def test_the_users_own_offload_comes_back(accelerator: Any, pipe: Any, kind: str) -> None:
    if kind == "component":
        pipe.enable_model_cpu_offload(device=accelerator.device)
    elif kind == "sequential":
        pipe.enable_sequential_cpu_offload(device=accelerator.device)
    else:
        pipe.enable_group_offload(onload_device=accelerator.device, offload_type="leaf_level")
    expected = small_run(pipe)
    with MemoryOptimizer("aggressive") as optimizer:
        optimizer.optimize_pipeline(pipe)
        assert f"{kind} offload to {accelerator.device} was in force" in optimizer.report.text()
        assert torch.equal(small_run(pipe), expected)
    found = existing_offload(pipe)
    assert (found.kind, found.device) == (kind, accelerator.device)
    assert torch.equal(small_run(pipe), expected)


def test_a_pipeline_on_the_device_goes_back_there(accelerator: Any, pipe: Any) -> None:
    pipe.to(accelerator.device)
    before = Untouched(pipe)
    with MemoryOptimizer("ultra") as optimizer:
        optimizer.optimize_pipeline(pipe)
        small_run(pipe)
    before.check()


# -- what fails --------------------------------------------------------------------------------


def test_a_failing_strategy_leaves_the_pipeline_as_it_was(
    accelerator: Any, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no streams today")

    before, base = Untouched(pipe), held(accelerator)
    monkeypatch.setattr(pipelines.group_offload, "apply", broken)
    optimizer = MemoryOptimizer("ultra")
    with pytest.raises(LowtideError) as caught:
        optimizer.optimize_pipeline(pipe)
    for part in ("StableDiffusionPipeline", "ultra", "no streams today", "fp8 storage, vae tiling"):
        assert part in str(caught.value)
    assert optimizer.pipeline is None and optimizer.report is None
    before.check()
    assert now(accelerator) == base


def test_memory_that_runs_out_while_placing_is_not_disguised(accelerator: Any, pipe: Any) -> None:
    before, base = Untouched(pipe), held(accelerator)
    accelerator(capacity="20M")
    with pytest.raises(torch.OutOfMemoryError):
        MemoryOptimizer("none").optimize_pipeline(pipe)
    before.check()
    assert held(accelerator) == base


def test_a_pipeline_spread_by_a_device_map_is_refused(accelerator: Any, pipe: Any) -> None:
    pipe.hf_device_map = {"unet": 0, "vae": "cpu"}
    before = Untouched(pipe)
    with pytest.raises(TargetError, match="reset_device_map"):
        MemoryOptimizer("balanced").optimize_pipeline(pipe)
    before.check()


def test_a_missing_vae_is_named_unless_nothing_is_asked_of_it(accelerator: Any, pipe: Any) -> None:
    pipe.vae = None
    with pytest.raises(TargetError, match="has no VAE loaded"):
        MemoryOptimizer("balanced").optimize_pipeline(pipe)
    config = MemoryOptimizationConfig.from_level(
        "balanced", enable_vae_tiling=False, enable_vae_slicing=False
    )
    with MemoryOptimizer(config) as optimizer:
        optimizer.optimize_pipeline(pipe)
        changed = [e for e in optimizer.report.applied if e.strategy != "cleanup"]
        assert {entry.component for entry in changed} == {"text_encoder", "unet"}


@pytest.mark.parametrize("target", [torch.nn.Linear(1, 1), None, "tiny-sd15"])
def test_what_is_no_pipeline_is_refused(accelerator: Any, target: Any) -> None:
    with pytest.raises(TargetError, match="is no diffusers pipeline"):
        MemoryOptimizer("none").optimize_pipeline(target)


def test_bad_arguments_are_refused_at_once(accelerator: Any) -> None:
    with pytest.raises(ConfigError, match="unknown level"):
        MemoryOptimizer("extreme")
    with pytest.raises(DeviceError):
        MemoryOptimizer("none", device="xpu:7")
    with pytest.raises(ConfigError, match="record_stream"):
        MemoryOptimizer(MemoryOptimizationConfig(record_stream=True))


def test_auto_follows_the_device(accelerator: Any) -> None:
    accelerator(capacity="7G")
    assert MemoryOptimizer().config.level is OptimizationLevel.AGGRESSIVE
    accelerator(capacity="5G")
    assert MemoryOptimizer("auto").config.level is OptimizationLevel.ULTRA


@pytest.mark.parametrize("name", ["auto", "AUTO", " Auto "])
def test_auto_in_any_case_follows_the_device_given(accelerator: Any, name: str) -> None:
    assert MemoryOptimizer(name, device="cpu").config.cpu_mode
    assert not MemoryOptimizer(name, device=accelerator.device).config.cpu_mode

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.optimizer import MemoryOptimizer
from lowtide.memory.strategies import cleanup_moments
from lowtide.tests.memory.strategies.pipes import image, structure, tiny

NAME = cleanup_moments.NAME


@pytest.fixture
def cleanups(monkeypatch: pytest.MonkeyPatch, accelerator: Any) -> list[int]:
    """Bytes reserved beyond what is allocated, before each cleanup the strategy did."""
    seen: list[int] = []

    def counted(**named: Any) -> Any:
        seen.append(accelerator.reserved - accelerator.allocated)
        receipt = cleanup(**named)
        assert accelerator.reserved - accelerator.allocated <= seen[-1]
        return receipt

    cleanup = cleanup_moments.release
    monkeypatch.setattr(cleanup_moments, "release", counted)
    return seen


def optimizer(accelerator: Any, level: str, **settings: Any) -> MemoryOptimizer:
    config = MemoryOptimizationConfig.from_level(level, **settings)
    return MemoryOptimizer(config, device=accelerator.device)


ONLY = {"after_load": False, "after_unload": False, "on_exit": False}


def test_after_each_step(accelerator: Any, cleanups: list[int]) -> None:
    expected = image(tiny("tiny-sd15", "float32"), steps=3)
    with optimizer(accelerator, "none", **ONLY, cleanup="always", after_step=True) as ours:
        pipe = ours.optimize_pipeline(tiny("tiny-sd15", "float32"))
        found = image(pipe, steps=3)
    assert len(cleanups) == 3 and all(cleanups)
    assert torch.equal(found, expected)


def test_a_new_scheduler_is_followed(accelerator: Any, cleanups: list[int]) -> None:
    with optimizer(accelerator, "none", **ONLY, cleanup="always", after_step=True) as ours:
        pipe = ours.optimize_pipeline(tiny())
        image(pipe, steps=2)
        old = pipe.scheduler
        pipe.scheduler = type(old).from_config(old.config)
        image(pipe, steps=2)
        assert "step" not in vars(old)
    assert len(cleanups) == 4
    assert "step" not in vars(pipe.scheduler)


def test_after_a_component_has_left_and_again_in_the_next_run(
    accelerator: Any, cleanups: list[int]
) -> None:
    settings = {**ONLY, "after_unload": True, "cleanup": "always"}
    with optimizer(accelerator, "balanced", **settings) as ours:
        pipe = ours.optimize_pipeline(tiny())
        image(pipe)
        first = len(cleanups)
        image(pipe)
    # The text encoder and the UNet leave for who comes after them.
    assert (first, len(cleanups)) == (2, 4)


def test_at_the_end_of_a_run(accelerator: Any, cleanups: list[int]) -> None:
    settings = {**ONLY, "on_exit": True, "cleanup": "always"}
    with optimizer(accelerator, "none", **settings) as ours:
        pipe = ours.optimize_pipeline(tiny())
        image(pipe)
        held = accelerator.allocated
        assert len(cleanups) == 1 and cleanups[0] > 0
        # Of the cache nothing is left but the rest of segments that hold weights.
        assert accelerator.reserved - held < cleanups[0]


def test_under_pressure_only_when_memory_is_short(accelerator: Any, cleanups: list[int]) -> None:
    settings = {**ONLY, "after_step": True, "cleanup": "pressure"}
    with optimizer(accelerator, "none", **settings) as ours:
        pipe = ours.optimize_pipeline(tiny())
        image(pipe)
        assert cleanups == []
        accelerator(capacity=int(accelerator.peak_reserved * 1.05))
        image(pipe)
        assert cleanups


def test_off_does_nothing(accelerator: Any, cleanups: list[int]) -> None:
    before = structure(pipe := tiny())
    with optimizer(accelerator, "none", cleanup="off") as ours:
        ours.optimize_pipeline(pipe)
        assert ours.report is not None
        assert NAME not in {entry.strategy for entry in ours.report.entries}
        image(pipe)
    assert cleanups == []
    assert structure(pipe)["vae config"] == before["vae config"]


def test_the_undo_leaves_no_trace(accelerator: Any) -> None:
    pipe = tiny("tiny-sd15", "float32")
    image(pipe)
    before, steps = structure(pipe), sorted(vars(pipe.scheduler))
    with optimizer(accelerator, "balanced", cleanup="always", after_step=True) as ours:
        ours.optimize_pipeline(pipe)
        image(pipe)
    assert structure(pipe) == before
    assert "step" not in vars(pipe.scheduler) and "step" not in steps


def test_a_pipeline_without_scheduler_is_told_so(accelerator: Any) -> None:
    class Plain:
        pass

    config = MemoryOptimizationConfig.from_level("none", cleanup="always", after_step=True)
    moments = cleanup_moments.CleanupMoments(config, accelerator.device)
    outcomes = cleanup_moments.apply(moments, Plain())
    assert [type(outcome).__name__ for outcome in outcomes] == ["Skipped", "Skipped"]

"""Components that change hands: shared by two pipelines, or swapped in an optimised one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.adapters.diffusers import existing_offload
from lowtide.memory.optimizer import MemoryOptimizer
from lowtide.tests.memory.tiny import Untouched, held, now, small_run, used


@pytest.fixture
def pipe(accelerator: Any) -> Any:
    return used()


def twin(pipe: Any) -> Any:
    """Another pipeline of the same components."""
    other = type(pipe)(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.mark.parametrize("levels", [("ultra", "balanced"), ("aggressive", "ultra")])
@pytest.mark.parametrize("first_out", [0, 1])
def test_of_two_pipelines_with_shared_components_one_is_optimised_at_a_time(
    accelerator: Any, pipe: Any, levels: tuple[str, str], first_out: int
) -> None:
    other = twin(pipe)
    before, base = Untouched(pipe), held(accelerator)
    optimizers = [MemoryOptimizer(level) for level in levels]
    optimizers[0].optimize_pipeline(pipe)
    optimizers[1].optimize_pipeline(other)
    assert [one.pipeline for one in optimizers] == [None, other]
    small_run(other)
    optimizers[first_out].undo()
    optimizers[1 - first_out].undo()
    before.check()
    assert now(accelerator) == base


def test_one_shared_component_is_enough(accelerator: Any, pipe: Any) -> None:
    other = used()
    other.unet = pipe.unet
    first, second = MemoryOptimizer("ultra"), MemoryOptimizer("balanced")
    first.optimize_pipeline(pipe)
    second.optimize_pipeline(other)
    assert first.pipeline is None and existing_offload(pipe).kind == "component"
    second.undo()
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}


@pytest.mark.parametrize("level", ["none", "balanced", "aggressive", "ultra"])
def test_a_swapped_component_is_optimised_and_the_old_one_given_back(
    accelerator: Any, pipe: Any, level: str
) -> None:
    old, other = Untouched(pipe), used()
    new, base = Untouched(other), held(accelerator)
    mine = pipe.vae
    with MemoryOptimizer(level) as optimizer:
        optimizer.optimize_pipeline(pipe)
        expected = small_run(pipe)
        pipe.vae = other.vae
        optimizer.optimize_pipeline(pipe)
        assert torch.equal(small_run(pipe), expected)
        pipe.vae = mine
    old.check()
    new.check()
    assert held(accelerator) == base

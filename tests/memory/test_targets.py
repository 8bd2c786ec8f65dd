"""What may be handed in, and the parts it has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lowtide.memory.errors import TargetError
from lowtide.memory.targets import is_device, is_optimizer, is_pipeline, parts_of, pipeline_of
from lowtide.tests.memory.toys import Block, Optimizer, Pipeline

CPU = torch.device("cpu")


def names(target: Any) -> list[str]:
    return [name for name, _ in parts_of(target)]


def test_a_pipeline_is_its_components_and_itself() -> None:
    pipe = Pipeline()
    assert names(pipe) == ["text_encoder", "unet", "vae", "scheduler", "pipeline"]
    parts = dict(parts_of(pipe))
    assert parts["unet"] is pipe.unet and parts["pipeline"] is pipe


def test_a_component_under_two_names_comes_once() -> None:
    pipe = Pipeline()
    pipe.vae = pipe.unet  # type: ignore[assignment]
    assert names(pipe) == ["text_encoder", "unet", "scheduler", "pipeline"]


def test_a_module_is_one_part_called_by_its_class() -> None:
    block = Block(1, 0)
    assert list(parts_of(block)) == [("Block", block)]


def test_an_optimizer_stands_for_its_pipeline() -> None:
    pipe = Pipeline()
    optimizer = Optimizer(pipe, CPU)
    assert list(parts_of(optimizer)) == list(parts_of(pipe))
    assert pipeline_of(optimizer) is pipeline_of(pipe) is pipe


def test_an_optimizer_without_a_pipeline_has_no_parts() -> None:
    assert names(Optimizer(None, CPU)) == []
    assert pipeline_of(Optimizer(None, CPU)) is None


@pytest.mark.parametrize("target", [torch.zeros(1), {"unet": 1}, object(), None, "cuda:0"])
def test_what_holds_no_model_is_named(target: Any) -> None:
    with pytest.raises(TargetError, match=f"^{type(target).__name__} is neither a pipeline"):
        names(target)
    assert pipeline_of(target) is None


def test_kinds_are_told_apart() -> None:
    pipe = Pipeline()
    assert is_device("cuda:0") and is_device(CPU) and not is_device(pipe)
    assert is_pipeline(pipe) and not is_pipeline(Block(1, 0))
    assert not is_pipeline(SimpleNamespace(components=["unet"]))
    assert is_optimizer(Optimizer(None, CPU)) and not is_optimizer(pipe)

"""What changes or saves an optimised pipeline's modules works on the modules as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lowtide.memory.optimizer import MemoryOptimizer
from lowtide.tests.memory.tiny import Untouched, held, now, small_run, used
from safetensors.torch import load_file

LEVELS = ("balanced", "aggressive", "ultra")


@pytest.fixture
def pipe(accelerator: Any) -> Any:
    return used()


def saved(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        t.dtype == other[n].dtype and torch.equal(t, other[n]) for n, t in one.items()
    )


@pytest.mark.parametrize("level", LEVELS)
def test_a_pipeline_is_saved_as_it_was_before(
    accelerator: Any, pipe: Any, tmp_path: Path, level: str
) -> None:
    before, base, names = Untouched(pipe), held(accelerator), set(vars(pipe))
    weights = {n: t.clone() for n, t in pipe.unet.state_dict().items()}
    with MemoryOptimizer(level) as optimizer:
        optimizer.optimize_pipeline(pipe)
        image = small_run(pipe)
        pipe.save_pretrained(tmp_path)
        assert same(saved(tmp_path / "unet"), weights)
        assert torch.equal(small_run(pipe), image)
    before.check_values()
    assert set(vars(pipe)) == names
    assert now(accelerator) == base


def test_lora_layers_given_as_a_module_are_saved_as_they_were(
    accelerator: Any, pipe: Any, tmp_path: Path
) -> None:
    layer = pipe.unet.time_embedding
    weights = {f"unet.{n}": t.clone() for n, t in layer.state_dict().items()}
    with MemoryOptimizer("ultra") as optimizer:
        optimizer.optimize_pipeline(pipe)
        pipe.save_lora_weights(tmp_path, unet_lora_layers=layer)
    assert same(saved(tmp_path), weights)

"""What changes or saves an optimised pipeline's modules works on the modules as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lowtide.memory.adapters.diffusers import existing_offload, modules_of
from lowtide.memory.optimizer import MemoryOptimizer
from lowtide.memory.strategies.structure import PART_METHODS
from lowtide.tests.memory.tiny import Untouched, held, now, small_run, used
from peft import LoraConfig
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


def test_a_component_is_saved_as_it_was_too(accelerator: Any, pipe: Any, tmp_path: Path) -> None:
    weights = {n: t.clone() for n, t in pipe.unet.state_dict().items()}
    with MemoryOptimizer("ultra") as optimizer:
        optimizer.optimize_pipeline(pipe)
        pipe.unet.save_pretrained(tmp_path)
    assert same(saved(tmp_path), weights)


def join(part: Any, name: str = "one") -> None:
    """A LoRA of some effect, the same each time."""
    torch.manual_seed(3)
    part.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), name)


@pytest.mark.parametrize("name", ["unet", "vae"])
@pytest.mark.parametrize("level", LEVELS)
def test_an_adapter_joins_a_component_directly(
    accelerator: Any, pipe: Any, name: str, level: str
) -> None:
    part, base = getattr(pipe, name), held(accelerator)
    other = used()
    join(getattr(other, name))
    with MemoryOptimizer(level) as optimizer:
        optimizer.optimize_pipeline(other)
        expected = small_run(other)
    plain = small_run(other)
    del other
    with MemoryOptimizer(level) as optimizer:
        optimizer.optimize_pipeline(pipe)
        kind = existing_offload(pipe).kind
        small_run(pipe)
        join(part)
        lora = {p.dtype for n, p in part.named_parameters() if "lora" in n}
        assert lora == {torch.float32}
        assert existing_offload(pipe).kind == kind
        assert torch.equal(small_run(pipe), expected)
    assert torch.equal(small_run(pipe), plain)
    assert held(accelerator) == base


def test_a_deleted_adapter_leaves_no_trace(accelerator: Any, pipe: Any) -> None:
    before = Untouched(pipe)
    with MemoryOptimizer("ultra") as optimizer:
        optimizer.optimize_pipeline(pipe)
        plain = small_run(pipe)
        join(pipe.unet)
        assert not torch.equal(small_run(pipe), plain)
        pipe.unet.unload_lora()
        assert torch.equal(small_run(pipe), plain)
    before.check_values()
    for part in modules_of(pipe).values():
        assert not {*PART_METHODS, "_lowtide_optimizer"} & vars(part).keys()

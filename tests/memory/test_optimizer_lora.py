"""LoRAs on an optimised pipeline act as on the plain one, whenever they are loaded."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from lowtide.memory.adapters import pipelines
from lowtide.memory.adapters.diffusers import existing_offload
from lowtide.memory.adapters.synthetic import build, lora_state_dict
from lowtide.memory.errors import LowtideError
from lowtide.memory.optimizer import MemoryOptimizer
from lowtide.tests.accelerator import activate
from lowtide.tests.memory.tiny import Untouched, held, now, small_run, used

pytestmark = pytest.mark.slow

LEVELS = ("balanced", "aggressive", "ultra")


@lru_cache(maxsize=1)
def lora() -> dict[str, torch.Tensor]:
    return lora_state_dict(build("tiny-sd15", "float32"))


def load(pipe: Any) -> None:
    pipe.load_lora_weights(dict(lora()), adapter_name="one")


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().mean().item()


@pytest.fixture
def pipe(accelerator: Any) -> Any:
    return used()


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    """The image of the whole pipeline on the device, with the LoRA."""
    accelerator, pipe = activate(), used()
    load(pipe)
    return small_run(pipe.to(accelerator.device))


@pytest.mark.parametrize("level", LEVELS)
def test_a_lora_loaded_before_and_after_gives_the_same_image(
    accelerator: Any, pipe: Any, expected: torch.Tensor, level: str
) -> None:
    with MemoryOptimizer(level) as optimizer:
        optimizer.optimize_pipeline(pipe)
        plain = small_run(pipe)
        load(pipe)
        after = small_run(pipe)
    other = used()
    load(other)
    with MemoryOptimizer(level) as optimizer:
        optimizer.optimize_pipeline(other)
        before = small_run(other)
    assert torch.equal(before, after)
    if level == "ultra":
        assert distance(after, expected) < 0.3 * distance(after, plain)
    else:
        assert torch.equal(after, expected)
        assert not torch.equal(after, plain)


@pytest.mark.parametrize("level", LEVELS)
def test_an_unloaded_lora_leaves_no_trace(accelerator: Any, pipe: Any, level: str) -> None:
    before, base = Untouched(pipe), held(accelerator)
    with MemoryOptimizer(level) as optimizer:
        optimizer.optimize_pipeline(pipe)
        plain = small_run(pipe)
        load(pipe)
        pipe.unload_lora_weights()
        assert torch.equal(small_run(pipe), plain)
    before.check_values()
    assert now(accelerator) == base


@pytest.mark.parametrize("level", LEVELS)
def test_an_undo_keeps_the_lora(
    accelerator: Any, pipe: Any, expected: torch.Tensor, level: str
) -> None:
    with MemoryOptimizer(level) as optimizer:
        optimizer.optimize_pipeline(pipe)
        load(pipe)
        small_run(pipe)
    assert pipe.get_active_adapters() == ["one"]
    assert {p.device.type for p in pipe.unet.parameters()} == {"cpu"}
    assert torch.equal(small_run(pipe.to(accelerator.device)), expected)


def test_the_adapters_of_ultra_are_not_stored_in_fp8(accelerator: Any, pipe: Any) -> None:
    with MemoryOptimizer("ultra") as optimizer:
        optimizer.optimize_pipeline(pipe)
        load(pipe)
        types = {n: p.dtype for n, p in pipe.unet.named_parameters()}
    assert {t for n, t in types.items() if "lora" in n} == {torch.float32}
    assert torch.float8_e4m3fn in {t for n, t in types.items() if n.endswith("to_q.weight")} | {
        t for n, t in types.items() if n.endswith("base_layer.weight")
    }


def test_a_lora_that_does_not_load_leaves_the_optimisation_in_force(
    accelerator: Any, pipe: Any
) -> None:
    with MemoryOptimizer("aggressive") as optimizer:
        optimizer.optimize_pipeline(pipe)
        plain = small_run(pipe)
        with pytest.raises(ValueError, match="LoRA"):
            pipe.load_lora_weights({"nonsense": torch.zeros(1)})
        assert existing_offload(pipe).kind == "sequential"
        assert torch.equal(small_run(pipe), plain)


def test_fusing_runs_on_the_plain_pipeline(
    accelerator: Any, pipe: Any, expected: torch.Tensor
) -> None:
    with MemoryOptimizer("aggressive") as optimizer:
        optimizer.optimize_pipeline(pipe)
        load(pipe)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        assert existing_offload(pipe).kind == "sequential"
        assert (small_run(pipe) - expected).abs().max() < 1e-4


def test_when_it_cannot_be_applied_again_nothing_of_it_stays(
    accelerator: Any, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no room")

    names = set(vars(pipe))
    optimizer = MemoryOptimizer("aggressive")
    optimizer.optimize_pipeline(pipe)
    monkeypatch.setattr(pipelines.sequential_offload, "apply", broken)
    with pytest.raises(LowtideError, match="no room"):
        load(pipe)
    monkeypatch.undo()
    assert optimizer.pipeline is None
    assert set(vars(pipe)) == names
    pipe.unload_lora_weights()
    optimizer.optimize_pipeline(pipe)
    assert existing_offload(pipe).kind == "sequential"

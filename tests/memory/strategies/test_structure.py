from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lowtide.memory.adapters.synthetic import lora_state_dict
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.optimizer import MemoryOptimizer
from lowtide.memory.strategies.structure import METHODS, guard
from lowtide.memory.tensors import device_bytes
from lowtide.tests.memory.strategies.pipes import (
    Plain,
    image,
    measured,
    same_values,
    structure,
    tiny,
    values,
)

SIZE = 64


class Pipeline:
    def __init__(self) -> None:
        self.log: list[str] = []

    def load_lora_weights(self, source: str, *, adapter_name: str = "default") -> str:
        self.log.append(f"load {source} as {adapter_name}")
        return "loaded"

    def fuse_lora(self) -> None:
        raise ValueError("nothing to fuse")

    @contextmanager
    def suspended(self, method: str) -> Iterator[None]:
        self.log.append(f"undo for {method}")
        try:
            yield
        finally:
            self.log.append("apply again")


def test_a_structural_method_runs_between_undo_and_apply() -> None:
    pipe = Pipeline()
    undo = guard(pipe, pipe.suspended)
    assert pipe.load_lora_weights("style", adapter_name="a") == "loaded"
    assert pipe.log == ["undo for load_lora_weights", "load style as a", "apply again"]
    undo()
    pipe.log.clear()
    pipe.load_lora_weights("style")
    assert pipe.log == ["load style as default"]
    assert sorted(vars(pipe)) == ["log"]


def test_it_is_applied_again_when_the_method_fails() -> None:
    pipe = Pipeline()
    guard(pipe, pipe.suspended)
    with pytest.raises(ValueError, match="nothing to fuse"):
        pipe.fuse_lora()
    assert pipe.log == ["undo for fuse_lora", "apply again"]


def test_only_methods_the_pipeline_has_are_guarded_and_keep_their_signature() -> None:
    pipe = Pipeline()
    before = inspect.signature(pipe.load_lora_weights)
    guard(pipe, pipe.suspended)
    assert sorted(vars(pipe)) == ["fuse_lora", "load_lora_weights", "log"]
    assert inspect.signature(pipe.load_lora_weights) == before


@pytest.mark.parametrize("name", ["tiny-sd15", "tiny-sdxl", "tiny-flux"])
def test_the_methods_of_real_pipelines_are_guarded_and_given_back(name: str) -> None:
    pipe = tiny(name)
    before = structure(pipe)
    undo = guard(pipe, Pipeline().suspended)
    wrapped = set(METHODS) & vars(pipe).keys()
    assert wrapped == {method for method in METHODS if hasattr(type(pipe), method)}
    assert {"load_lora_weights", "unload_lora_weights", "fuse_lora", "unfuse_lora"} <= wrapped
    undo()
    assert structure(pipe) == before


@pytest.mark.parametrize("level", ["balanced", "aggressive", "ultra"])
def test_a_lora_works_under_every_level_and_goes_away_again(accelerator: Any, level: str) -> None:
    plain = Plain(accelerator, size=SIZE)
    pipe, lora = plain.pipe, lora_state_dict(plain.pipe)
    pipe.load_lora_weights(lora)
    pipe.to(accelerator.device)
    expected = image(pipe, size=SIZE)
    pipe.to("cpu")
    pipe.unload_lora_weights()
    assert (expected - plain.run.image).abs().mean() > 0.05
    config = MemoryOptimizationConfig.from_level(
        level, enable_vae_tiling=False, fp8_storage=False, attention="auto"
    )
    with MemoryOptimizer(config, accelerator.device) as optimizer:
        optimizer.optimize_pipeline(pipe)
        without = measured(pipe, accelerator, size=SIZE)
        pipe.load_lora_weights(lora)
        assert not any(device_bytes(part) > 8192 for part in (pipe.unet, pipe.vae))
        run = measured(pipe, accelerator, size=SIZE)
        assert torch.equal(run.image, expected)
        assert run.peak < plain.run.peak - 0.4 * plain.weights
        pipe.fuse_lora()
        assert torch.allclose(image(pipe, size=SIZE), expected, atol=1e-3)
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
        assert torch.allclose(image(pipe, size=SIZE), without.image, atol=1e-3)
        assert not any("lora" in name for name, _ in pipe.unet.named_modules())
    assert not set(METHODS) & vars(pipe).keys()
    assert plain.left() == (0, 0)


def test_a_lora_joins_an_fp8_unet_in_full_precision(accelerator: Any) -> None:
    plain = Plain(accelerator, dtype="float16", size=SIZE)
    config = MemoryOptimizationConfig.from_level("ultra", enable_vae_tiling=False)
    with MemoryOptimizer(config, accelerator.device) as optimizer:
        optimizer.optimize_pipeline(plain.pipe)
        plain.pipe.load_lora_weights(lora_state_dict(plain.pipe))
        found = {name: p.dtype for name, p in plain.pipe.unet.named_parameters()}
        assert {d for n, d in found.items() if "lora_" in n} == {torch.float16}
        assert {d for n, d in found.items() if "to_q.base_layer.weight" in n} == {
            torch.float8_e4m3fn
        }
        assert image(plain.pipe, size=SIZE).isfinite().all()
        plain.pipe.unload_lora_weights()
    assert same_values(values(plain.pipe), plain.values)
    assert plain.left() == (0, 0)

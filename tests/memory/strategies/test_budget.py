from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from lowtide.memory.adapters.diffusers import modules_of
from lowtide.memory.adapters.synthetic import component_bytes
from lowtide.memory.errors import BudgetError, ConfigError
from lowtide.memory.levels import MemoryOptimizationConfig, OptimizationLevel
from lowtide.memory.optimizer import MemoryOptimizer
from lowtide.memory.strategies.budget import LADDER, Need, estimate, fit
from lowtide.memory.strategies.exact_tiling import planned
from lowtide.memory.units import parse_bytes
from lowtide.tests.memory.strategies.pipes import Plain, tiny

pytestmark = pytest.mark.usefixtures("estimates_only")

Parts = Mapping[str, torch.nn.Module]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny("tiny-sdxl")


@pytest.fixture(scope="module")
def parts(pipe: Any) -> Parts:
    return modules_of(pipe)


def level(name: str, **overrides: Any) -> MemoryOptimizationConfig:
    return MemoryOptimizationConfig.from_level(name, **overrides)


def automatic(budget: int) -> MemoryOptimizationConfig:
    return level("none", requested_level=OptimizationLevel.AUTO, budget_bytes=budget)


def needs(pipe: Any, parts: Parts) -> list[int]:
    return [estimate(level(step.value), pipe, parts).total for step in LADDER]


def test_without_a_budget_nothing_is_chosen(pipe: Any, parts: Parts) -> None:
    config = level("balanced")
    assert fit(config, pipe, parts) == (config, None)


@pytest.mark.parametrize("name", ["tiny-sd15", "tiny-sdxl", "tiny-flux"])
def test_weights_are_counted_to_the_byte(name: str) -> None:
    pipe = tiny(name)
    parts = modules_of(pipe)
    sizes = component_bytes(pipe)
    assert estimate(level("none"), pipe, parts).weights == sum(sizes.values())
    config = level("none", offload="component", enable_vae_tiling=True, vae_tile_size=64)
    assert estimate(config, pipe, parts).weights in sizes.values()
    leaves = [
        sum(tensor.nbytes for tensor in (*m.parameters(False), *m.buffers(False)))
        for part in parts.values()
        for m in part.modules()
    ]
    assert estimate(level("ultra"), pipe, parts).weights <= 2 * max(leaves)


def test_blocks_need_more_than_leaves_and_less_than_components(pipe: Any, parts: Parts) -> None:
    config = {"enable_vae_tiling": True, "vae_tile_size": 64}
    block = level("none", offload="group", group_offload_type="block_level", **config)
    leaf = level("none", offload="group", **config)
    component = level("none", offload="component", **config)
    found = [estimate(c, pipe, parts).weights for c in (leaf, block, component)]
    assert found == sorted(found)
    assert found[0] < 0.5 * found[1]


def test_fp8_and_cpu_mode_take_weights_off(pipe: Any, parts: Parts) -> None:
    sizes = component_bytes(pipe)
    whole = estimate(level("none"), pipe, parts).weights
    stored = estimate(level("none", fp8_storage=True), pipe, parts).weights
    assert 0.45 * sizes["unet"] < whole - stored <= 0.5 * sizes["unet"]
    alone = estimate(level("none", cpu_mode=True), pipe, parts)
    assert alone.weights == sizes["unet"]
    assert alone.activations < estimate(level("none"), pipe, parts).activations
    both = estimate(level("none", cpu_mode=True, fp8_storage=True), pipe, parts).weights
    assert both == sizes["unet"] - (whole - stored)


def test_tiles_need_less_than_the_whole_image(pipe: Any, parts: Parts) -> None:
    whole = estimate(level("none"), pipe, parts).activations
    settings = {"enable_vae_tiling": True, "vae_tile_mode": "blended"}
    tiled = estimate(level("none", **settings), pipe, parts).activations
    assert tiled == whole // 4, "half the edge"


def test_strips_need_what_their_layers_take(pipe: Any, parts: Parts) -> None:
    vae = {"vae": parts["vae"]}
    config = level("none", enable_vae_tiling=True)
    exact = estimate(config, pipe, vae, edge=512)
    strips = planned(parts["vae"].decoder, 1, 512, 512, 4, config.tile_for(512, 512))
    assert strips is not None and exact.activations == strips.strips
    assert exact.activations < estimate(level("none"), pipe, vae, edge=512).activations / 2


def test_a_pipeline_without_weights_needs_nothing() -> None:
    assert estimate(level("none"), object(), {}) == Need(0, 0)


def test_the_gentlest_level_that_fits_is_chosen(pipe: Any, parts: Parts) -> None:
    found = needs(pipe, parts)
    assert found[0] > found[1] > found[2]
    for step, need in zip(LADDER[:3], found, strict=False):
        config, note = fit(automatic(need), pipe, parts)
        assert config.level is step
        assert note is not None and f"level {step.value}, estimated to need" in note
    chosen = [fit(automatic(need - 1), pipe, parts)[0].level for need in found[:2]]
    assert chosen == list(LADDER[1:3])


def test_a_level_asked_for_by_name_is_never_weakened(pipe: Any, parts: Parts) -> None:
    for step in LADDER:
        asked = level(step.value, budget_bytes=1 << 40)
        assert fit(asked, pipe, parts)[0] is asked
    raised = fit(level("none", budget_bytes=needs(pipe, parts)[0] - 1), pipe, parts)[0]
    assert raised.level is OptimizationLevel.BALANCED
    assert raised.requested_level is OptimizationLevel.NONE


def test_settings_made_by_hand_are_carried_over(pipe: Any, parts: Parts) -> None:
    by_hand: dict[str, Any] = {
        "attention": "pytorch",
        "forward_chunk_size": 128,
        "cleanup": "pressure",
        "after_load": False,
    }
    asked = level("none", budget_bytes=needs(pipe, parts)[2], **by_hand)
    chosen, note = fit(asked, pipe, parts)
    assert chosen.level is OptimizationLevel.AGGRESSIVE
    assert (chosen.offload, chosen.vae_decode_chunk_size) == ("sequential", 1)
    assert {name: getattr(chosen, name) for name in by_hand} == by_hand
    assert chosen.budget_bytes == asked.budget_bytes
    assert "aggressive by the budget of" in chosen.reason
    assert note is not None and note.startswith("budget ")
    assert asked.level is OptimizationLevel.NONE


def test_a_setting_the_needed_level_excludes_is_named(pipe: Any, parts: Parts) -> None:
    asked = level("balanced", enable_vae_slicing=False, budget_bytes=needs(pipe, parts)[2])
    with pytest.raises(ConfigError, match=r"needs level aggressive.*vae_decode_chunk_size"):
        fit(asked, pipe, parts)


@pytest.mark.parametrize("name", ["tiny-sd15", "tiny-sdxl", "tiny-flux"])
def test_a_budget_nothing_keeps_names_the_smallest_that_works(name: str) -> None:
    pipe = tiny(name)
    parts = modules_of(pipe)
    with pytest.raises(BudgetError, match="does not hold this pipeline") as caught:
        fit(automatic(1000), pipe, parts)
    named = re.search(r"give ([\d.]+ [KMG]B) or more", str(caught.value))
    assert named is not None
    assert "pixels" in str(caught.value)
    smallest = parse_bytes(named[1].replace(" ", ""))
    config, _ = fit(automatic(smallest), pipe, parts)
    assert estimate(config, pipe, parts).total <= smallest
    with pytest.raises(BudgetError):
        fit(automatic(int(0.9 * smallest)), pipe, parts)


@pytest.mark.parametrize("name", ["tiny-sd15", "tiny-sdxl"])
@pytest.mark.parametrize("step", LADDER[:3])
def test_a_budget_is_kept_up_to_the_stated_factor(
    accelerator: Any, name: str, step: OptimizationLevel
) -> None:
    plain = Plain(accelerator, name, "float16")
    budget = estimate(level(step.value), plain.pipe, modules_of(plain.pipe)).total
    with MemoryOptimizer(automatic(budget), accelerator.device) as optimizer:
        optimizer.optimize_pipeline(plain.pipe)
        assert optimizer.config.level is step
        peak = plain.measured().peak
    assert peak / 2 < budget < 2.5 * peak
    plain.assert_restored()

"""Which strategy a configuration means for which component."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.adapters import pipelines
from lowtide.memory.adapters.synthetic import build
from lowtide.memory.errors import ConfigError, TargetError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.planner.work import Work
from lowtide.memory.strategies.base import Applied, Outcome, Skipped, undo_all

CPU = torch.device("cpu", 0)
FLUX = ("text_encoder", "text_encoder_2", "transformer", "vae")


@pytest.fixture
def apply(accelerator: Any) -> Any:
    """Apply a configuration to a pipeline; undone at the end of the test."""
    undos: list[Any] = []

    def run(
        config: MemoryOptimizationConfig, pipe: Any, device: torch.device | None = None
    ) -> list[Outcome]:
        found = list(pipelines.apply_all(config, pipe, device or accelerator.device))
        undos.extend(entry.undo for entry in found if isinstance(entry, Applied))
        return found

    yield run
    undo_all(reversed(undos))


def level(name: str, **more: Any) -> MemoryOptimizationConfig:
    return MemoryOptimizationConfig.from_level(name, **more)


def parts(entries: list[Outcome], strategy: str, kind: type = Applied) -> set[str]:
    return {e.component for e in entries if e.strategy == strategy and isinstance(e, kind)}


def test_none_places_everything(apply: Any) -> None:
    entries = apply(level("none"), build("tiny-flux", "float32"))
    assert {entry.strategy for entry in entries} == {"placement"}
    assert parts(entries, "placement") == set(FLUX)


@pytest.mark.parametrize(
    ("name", "offload"),
    [
        ("balanced", "component offload"),
        ("aggressive", "sequential offload"),
        ("ultra", "group offload"),
    ],
)
def test_each_level_has_its_offload_and_works_on_the_vae(
    apply: Any, name: str, offload: str
) -> None:
    entries = apply(level(name), build("tiny-flux", "float32"))
    assert parts(entries, offload) == set(FLUX)
    tiling = "vae tiling" if name == "ultra" else "exact vae tiling"
    assert parts(entries, tiling) == parts(entries, "vae slicing") == {"vae"}
    expected = {"transformer", "text_encoder", "text_encoder_2"} if name == "ultra" else set()
    assert parts(entries, "fp8 storage") == expected
    order = [entry.strategy for entry in entries]
    assert order.index(tiling) < order.index(offload)


def test_in_cpu_mode_only_the_denoiser_moves(apply: Any) -> None:
    entries = apply(level("ultra", cpu_mode=True), build("tiny-flux", "float32"))
    assert parts(entries, "cpu mode") == {"text_encoder", "text_encoder_2", "vae"}
    assert parts(entries, "group offload") == parts(entries, "fp8 storage") == {"transformer"}


def test_in_cpu_mode_a_component_has_nobody_to_take_turns_with(apply: Any) -> None:
    entries = apply(level("balanced", cpu_mode=True), build("tiny-sd15", "float32"))
    assert parts(entries, "component offload", Skipped) == {"pipeline"}
    assert parts(entries, "placement") == {"unet"}


def test_without_an_accelerator_nothing_is_offloaded(apply: Any) -> None:
    pipe = build("tiny-sd15", "float32")
    entries = apply(level("aggressive"), pipe, CPU)
    assert parts(entries, "sequential offload", Skipped) == {"pipeline"}
    assert {p.device.type for p in pipe.unet.parameters()} == {"cpu"}


def test_what_a_pipeline_lacks_is_skipped_by_name(apply: Any) -> None:
    pipe = build("tiny-sd15", "float32")
    pipe.vae = None
    entries = apply(level("balanced"), pipe)
    assert parts(entries, "vae tiling", Skipped) == {"VAE"}


def test_forward_chunking_is_for_the_denoiser_and_only_when_asked_for(apply: Any) -> None:
    pipe = build("tiny-sd15", "float32")
    assert parts(apply(level("none", forward_chunk_size=16), pipe), "forward chunking") == {"unet"}


def test_a_tile_is_checked_against_the_vae(accelerator: Any) -> None:
    pipe = build("tiny-sd15", "float32")
    config = level("balanced", vae_tile_size=72)
    assert pipelines.settle(config, pipe, accelerator.device).config is config
    pipe.vae = build("tiny-sd15", "float32").vae
    pipe.vae.config.block_out_channels = (32,) * 6
    with pytest.raises(ConfigError, match="`vae_tile_size` = 72 pixels does not suit this VAE"):
        pipelines.settle(config, pipe, accelerator.device)


def test_settling_says_why(accelerator: Any) -> None:
    pipe = build("tiny-sd15", "float32")
    settled = pipelines.settle(level("ultra"), pipe, accelerator.device)
    assert settled.notes == ["ultra was chosen by hand"]
    asked = level("none", budget_bytes=1 << 30)
    settled = pipelines.settle(asked, pipe, accelerator.device, Work(128, 96))
    assert settled.notes[1].startswith(
        "budget 1.00 GB for 128 x 96 pixels: level none fits as it is, predicted to take"
    )


def test_a_pipeline_without_weights_is_refused(accelerator: Any) -> None:
    pipe = build("tiny-sd15", "float32")
    pipe.unet = pipe.vae = pipe.text_encoder = None
    with pytest.raises(TargetError, match="has no component with weights loaded"):
        pipelines.settle(level("none"), pipe, accelerator.device)

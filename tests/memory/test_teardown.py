"""Force Cleanup outside ComfyUI: pipelines by their hooks, then everything unused."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from lowtide.memory import handles
from lowtide.memory.handles import LoadedPipeline
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.receipt import CACHE
from lowtide.memory.teardown import teardown
from lowtide.memory.units import MIB
from lowtide.tests.memory.tiny import held, now, small_run, used


class Cycle:
    """Garbage only a collection finds."""

    def __init__(self, device: torch.device) -> None:
        self.own = self
        self.tensor = torch.zeros(2 * MIB, dtype=torch.uint8, device=device)


def loaded(accelerator: Any, level: str) -> LoadedPipeline:
    found = LoadedPipeline(used(), "mine")
    found.apply(MemoryOptimizationConfig.from_level(level, cleanup="off"), accelerator.device)
    small_run(found.pipeline)
    return found


@pytest.mark.parametrize("level", ["none", "balanced", "aggressive", "ultra"])
def test_every_pipeline_leaves_the_device_and_runs_again(accelerator: Any, level: str) -> None:
    base = held(accelerator)
    mine = loaded(accelerator, level)
    config = MemoryOptimizationConfig.from_level(level, cleanup="off")
    expected = small_run(mine.pipeline)
    receipt = teardown(vram=True, ram=False)
    assert now(accelerator) == base
    assert receipt.errors == () and receipt.after.reserved == base[1]
    mine.apply(config, accelerator.device)
    assert torch.equal(small_run(mine.pipeline), expected)
    mine.undo()


def test_the_receipt_names_the_pipeline_and_its_part(accelerator: Any) -> None:
    base = held(accelerator)
    mine = LoadedPipeline(used(), "mine")
    mine.pipeline.to(accelerator.device)
    receipt = teardown(vram=True, ram=False)
    assert receipt.by_owner["mine: unet"] > receipt.by_owner["mine: text_encoder"] > MIB
    assert receipt.by_owner["mine: vae"] > MIB
    assert any(owner.endswith(CACHE) for owner in receipt.by_owner)
    assert sum(receipt.by_owner.values()) == receipt.freed
    assert now(accelerator) == base


def test_ram_alone_leaves_pipelines_on_the_device(accelerator: Any) -> None:
    mine = loaded(accelerator, "none")
    torch.zeros(32 * MIB, device=accelerator.device)
    receipt = teardown(vram=False, ram=True)
    assert mine.on_device(accelerator.device) >= mine.size
    assert receipt.freed >= 32 * MIB
    assert not any(owner.startswith("mine") for owner in receipt.by_owner)
    assert receipt.trimmed is not None or receipt.after.host_rss > 0
    mine.undo()


def test_vram_alone_does_not_trim_the_host(accelerator: Any) -> None:
    assert teardown(vram=True, ram=False).trimmed is None
    assert teardown(vram=True, ram=True).collect_seconds > 0


def test_garbage_is_collected_too(accelerator: Any) -> None:
    base = held(accelerator)
    lost = Cycle(accelerator.device)
    del lost
    teardown(vram=True, ram=False)
    assert now(accelerator) == base


def test_one_that_fails_is_reported_and_the_others_leave(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()
    one, other = loaded(accelerator, "none"), loaded(accelerator, "none")

    class Broken(torch.nn.Linear):
        def _apply(self, fn: Any, recurse: bool = True) -> Any:
            raise RuntimeError("stuck")

    one.pipeline.unet.broken = Broken(8, 8, device=accelerator.device)
    monkeypatch.setattr(handles, "_live", {one, other})
    one.optimizer = None
    receipt = teardown(vram=True, ram=False)
    assert any("unet: RuntimeError: stuck" in error for error in receipt.errors)
    assert other.on_device(accelerator.device) == 0
    del one.pipeline.unet.broken
    one.pipeline.to("cpu")


LEAK: list[torch.Tensor] = []


@pytest.mark.usefixtures("thawed")
def test_what_somebody_still_holds_is_named(accelerator: Any) -> None:
    LEAK.append(torch.zeros(2 * MIB, dtype=torch.uint8, device=accelerator.device))
    try:
        receipt = teardown(vram=True, ram=False)
    finally:
        LEAK.clear()
    assert [(it.owner, it.held) for it in receipt.holders] == [(f"{__name__}.LEAK", 2 * MIB)]
    assert f"still held by {__name__}.LEAK: 2.0 MB" in receipt.text()
    assert teardown(vram=True, ram=False).holders == ()


def test_kept_pipelines_stay_and_unknown_names_are_said(accelerator: Any) -> None:
    one = LoadedPipeline(used(), "mine")
    one.pipeline.to(accelerator.device)
    on_device = one.on_device(accelerator.device)
    receipt = teardown(vram=True, ram=False, keep=["MINE", "other"])
    assert one.on_device(accelerator.device) == on_device > 0
    assert receipt.errors == ("keep: no loaded model is called 'other'; there are: mine",)
    assert teardown(vram=True, ram=False).errors == ()
    assert one.on_device(accelerator.device) == 0

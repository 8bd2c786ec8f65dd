"""Cases, on the simulated accelerator: what FP8 saves there, and what a level makes of it."""

from __future__ import annotations

import torch
from lowtide.memory import backend
from lowtide.memory import float8 as codec
from lowtide.memory.adapters.comfy import apply
from lowtide.memory.errors import BudgetError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.report import OptimizationReport
from small import DEVICE, LAYERS, WIDTH, Model, load, lora, unload

import comfy.model_patcher as mp  # isort: skip

LAYER = WIDTH * WIDTH
codec._CHUNK = LAYER // 16  # as small beside these layers as it is beside a real model's


def half() -> mp.ModelPatcher:
    return mp.ModelPatcher(Model(torch.float16), DEVICE, torch.device("cpu"))


def optimized(one, level: str, **more: object):
    config = MemoryOptimizationConfig.from_level(level, **more)
    entries: list[object] = []
    share = apply.divide(config, model=one, clip=None, vae=None)
    found = apply.to_model(config, share, one, entries)
    apply.account_for_the_rest(config, entries)
    return found, OptimizationReport(config.level, "npu:0", entries)


def peak(one, prompts: int = 1) -> tuple[int, torch.Tensor]:
    """The most allocated beside what is there already, over loading and running."""
    import torch.npu

    start = backend.allocated(backend.device_of(DEVICE))
    torch.npu.reset_peak_memory_stats()
    images = [half_run(one) for _ in range(prompts)]
    assert all(torch.equal(image, images[0]) for image in images)
    found = torch.npu.max_memory_allocated() - start
    unload()
    assert backend.allocated(backend.device_of(DEVICE)) == start
    return found, images[0]


def half_run(one) -> torch.Tensor:
    load(one)
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(2)).half()
    with torch.inference_mode():
        return one.model.diffusion_model(x.to(DEVICE)).cpu()


def case_a_resident_model_takes_half() -> None:
    one = half()
    plain, image = peak(one)
    clone, report = optimized(one, "none", fp8_storage=True)
    found, stored = peak(clone, prompts=3)
    scales = 4 * WIDTH * LAYERS
    assert found < plain - LAYERS * LAYER + scales + 2 * LAYER + codec.decode_bytes(LAYER), (
        found,
        plain,
    )
    assert found < 0.7 * plain, (found, plain)
    assert 0 < codec.relative_error(stored, image) < 0.01
    assert "+ fp8 storage (model): 8 layers" in report.text(), report.text()


def case_a_lora_on_codes_stays_under_the_plain_models_peak_and_is_exact_at_every_budget() -> None:
    plain, image = peak(lora(half()))
    images = []
    for given in (lora(half()), half()):
        clone, _ = optimized(given, "none", fp8_storage=True)
        clone = clone if given.patches else lora(clone)
        found, stored = peak(clone, prompts=2)
        images.append(stored)
    for share in (0.6, 0.8, 0.95):
        one = lora(half())
        clone, report = optimized(one, "ultra", budget_bytes=int(share * plain) + (1 << 20))
        found, stored = peak(clone, prompts=3)
        assert found <= share * plain + (1 << 20), (share, found, report.text())
        images.append(stored)
    assert codec.relative_error(images[0], image) < 0.02
    assert all(torch.equal(image, images[0]) for image in images)


def case_ultra_streams_the_codes() -> None:
    one = half()
    clone, report = optimized(one, "ultra")
    plain, _ = peak(optimized(one, "ultra", fp8_storage=False)[0])
    found, _ = peak(clone)
    assert clone.loaded_size() == 0
    assert clone.model_size() < 0.6 * one.model_size()
    assert found <= plain + 2 * LAYER + codec.decode_bytes(LAYER), (found, plain)
    assert f"0 B of {apply.format_bytes(clone.model_size())} resident" in report.text()
    for part in ("text encoder", "vae"):
        assert any(e.component == part and e.strategy == "fp8 storage" for e in report.skipped)


def case_a_budget_too_small_for_a_decoded_layer_is_refused() -> None:
    clone, _ = optimized(half(), "none", fp8_storage=True)
    from lowtide.memory.adapters.comfy.limits import least_bytes

    least = least_bytes(clone)
    try:
        optimized(half(), "none", fp8_storage=True, budget_bytes=least)
    except BudgetError as error:
        assert "cannot hold the model" in str(error)
    else:
        raise AssertionError("accepted")
    optimized(half(), "none", fp8_storage=True, budget_bytes=least + 1)


def case_on_the_host_originals_are_not_kept_beside_codes() -> None:
    one = mp.ModelPatcher(Model(torch.float32), torch.device("cpu"), torch.device("cpu"))
    clone, report = optimized(one, "none", fp8_storage=True)
    assert "keep_originals=False stores it in half the RAM" in report.text()
    assert not clone.object_patches
    size = one.model_size()
    clone, report = optimized(one, "none", fp8_storage=True, keep_originals=False)
    assert one.model_size() == clone.model_size() < 0.3 * size
    assert "until it loads again" in report.text()

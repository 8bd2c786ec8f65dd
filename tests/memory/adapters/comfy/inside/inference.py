"""Cases: models that were made in inference mode and unloaded outside it, as by ComfyUI's /free."""

from __future__ import annotations

import comfy.model_management as mm
import torch
from idle import encode, text_encoder
from lowtide.memory.adapters.comfy import apply, between, models
from lowtide.memory.adapters.comfy.inference_weights import renew
from lowtide.memory.levels import MemoryOptimizationConfig
from small import DEVICE, load, lora, patcher, run

UNLOADED = (lambda: mm.free_memory(1e30, DEVICE), models.unload_all)


def case_every_level_takes_them_as_they_come() -> None:
    for level in ("none", "balanced", "aggressive", "ultra"):
        for budget in (None, 1 << 29):
            for unload in UNLOADED:
                with torch.inference_mode():
                    clip, one = text_encoder(), patcher()
                    plain, image = encode(clip), run(one)
                    load(one)
                unload()
                with torch.inference_mode():
                    config = MemoryOptimizationConfig.from_level(level, budget_bytes=budget)
                    share, entries = apply.divide(config, model=one, clip=clip, vae=None), []
                    model = apply.to_model(config, share, one, entries)
                    found = run(model)
                    run(lora(model))
                    text = encode(apply.to_clip(config, share, clip, entries))
                assert torch.equal(text, plain), (level, budget)
                assert level == "ultra" or torch.equal(found, image), (level, budget)


def case_the_end_of_a_run_leaves_nothing_to_renew() -> None:
    with torch.inference_mode():
        one = patcher()
        load(one)
    between.after_run(lambda release: None, always=True)
    assert one.loaded_size() == 0 and renew(one.model) == 0


def case_renewed_weights_are_the_same_and_shared_ones_stay_shared() -> None:
    with torch.inference_mode():
        one = patcher()
        blocks = one.model.diffusion_model.blocks
        blocks[1].weight = blocks[0].weight
        values = {name: it.clone() for name, it in one.model.named_parameters()}
        load(one)
    mm.free_memory(1e30, DEVICE)
    count = len(list(one.model.parameters()))
    assert renew(one.model) == count
    assert blocks[0].weight is blocks[1].weight
    for name, parameter in one.model.named_parameters():
        assert torch.equal(parameter, values[name]), name
        assert parameter._version is not None
    assert renew(one.model) == 0

"""Cases: a measurement holds only for what it was of."""

from __future__ import annotations

import torch
from lowtide.memory.adapters.comfy import apply
from lowtide.memory.adapters.comfy.questions import of_run
from lowtide.memory.levels import MemoryOptimizationConfig
from small import DEVICE, Model, lora

import comfy.model_patcher as mp  # isort: skip

SHAPE = (1, 4, 8, 8)


def asked(patcher):
    return of_run(patcher, SHAPE, {})


def optimized(model, **more: object):
    config = MemoryOptimizationConfig.from_level("balanced", **more)
    share = apply.divide(config, model=model, clip=None, vae=None)
    return apply.to_model(config, share, model, [])


def case_weights_in_eight_bits_are_another_question() -> None:
    model = mp.ModelPatcher(Model(torch.float16), DEVICE, torch.device("cpu"))
    plain, stored = optimized(model, fp8_storage=False), optimized(model, fp8_storage=True)
    assert asked(plain) == asked(model)
    assert asked(stored) != asked(plain)
    assert asked(stored) == asked(stored.clone())


def case_a_lora_is_another_question_and_its_strength_is_not() -> None:
    model = mp.ModelPatcher(Model(torch.float16), DEVICE, torch.device("cpu"))
    strong, weak = lora(model), model.clone()
    weak.add_patches({key: patch[0][1] for key, patch in strong.patches.items()}, 0.2)
    assert asked(weak) == asked(strong)
    assert asked(weak) != asked(model)

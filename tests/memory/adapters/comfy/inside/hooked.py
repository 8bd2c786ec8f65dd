"""Cases, on the simulated accelerator: LoRAs hooked to a prompt, under a budget."""

from __future__ import annotations

import comfy.hooks
import torch
from budgets import EXPECTED, MODEL, SIZE, budgeted, clean, peak_of
from diffusion import cond, keys, sample, with_loras
from lowtide.memory.adapters.comfy import limits


def hook() -> comfy.hooks.HookGroup:
    """A LoRA of rank 4, as ComfyUI's hook nodes load one."""
    generator = torch.Generator().manual_seed(3)
    state, found = MODEL.model.state_dict(), {}
    for key in keys(MODEL):
        shape = state[key].shape
        up = torch.randn(shape[0], 4, generator=generator)
        down = torch.randn(4, state[key][0].numel(), generator=generator) * 0.01
        if len(shape) == 4:
            up, down = up.reshape(*up.shape, 1, 1), down.reshape(4, *shape[1:])
        name = key.removeprefix("diffusion_model.").removesuffix(".weight").replace(".", "_")
        found[f"lora_unet_{name}.lora_up.weight"] = up
        found[f"lora_unet_{name}.lora_down.weight"] = down
    return comfy.hooks.create_hook_lora(found, 0.2, 0.0)


def hooked(seed: int, group: comfy.hooks.HookGroup) -> list[list[object]]:
    ((tokens, options),) = cond(seed)
    return [[tokens, {**options, "hooks": group}]]


def prompts(*, both: bool) -> dict[str, object]:
    group = hook()
    negative = hooked(2, group) if both else cond(2)
    return {"positive": hooked(1, group), "negative": negative}


def case_a_budget_holds_with_hooked_loras_and_changes_no_bit() -> None:
    """With hooks on one prompt only the core would keep a copy of every hooked weight."""
    for both in (True, False):
        clean()
        given = prompts(both=both)
        expected = sample(MODEL, **given)
        assert not torch.equal(expected, EXPECTED[0])
        for percent in (60, 100):
            clean()
            budget = SIZE * percent // 100
            clone = budgeted(MODEL, budget)
            for prompt in range(2):
                peak, found = peak_of(clone, **given)
                assert peak <= budget, (both, percent, prompt, peak / budget)
                assert torch.equal(found, expected), (both, percent, prompt)
            assert clone.hook_mode is comfy.hooks.EnumHookMode.MaxSpeed, "not as it was"
    clean()


def case_a_hooked_lora_on_another_lora_differs_by_rounding_alone() -> None:
    """The core adds the hooked one last where a weight is resident, first where it is streamed."""
    model, given = with_loras(MODEL, 1), prompts(both=True)
    expected = sample(model, **given)
    clean()
    budget = SIZE * 6 // 10
    for _ in range(2):
        peak, found = peak_of(budgeted(model, budget), **given)
        assert peak <= budget
        assert (found - expected).norm() / expected.norm() < 0.01
    assert (expected - sample(MODEL, **given)).norm() / expected.norm() > 0.05
    clean()


def case_hooked_bytes_are_those_of_the_largest_hooked_weight() -> None:
    assert limits.hooked_bytes(MODEL) == 0
    clone = MODEL.clone()
    key = keys(MODEL)[0]
    weight = MODEL.model.state_dict()[key]
    clone.hook_patches = {"hook": {key: [], "gone.weight": []}}
    assert limits.hooked_bytes(clone) == 12 * weight.numel()

"""One cell of the matrix: a setting, a family, a number of LoRAs; three prompts; then undone."""

from __future__ import annotations

import re
from typing import Any

from lowtide.memory.errors import BudgetError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.units import GIB
from lowtide.nodes.levels import MemoryLevelSelector
from lowtide.nodes.optimize import OptimizePipeline
from subjects import (
    STRENGTHS,
    Picture,
    Subject,
    accelerator,
    changed,
    picture,
    singly,
    stock,
    subject,
    unload,
    with_loras,
)
from traces import leftovers

PROMPTS = 3
_fp8: dict[tuple[str, int, int, bool], Picture] = {}


def sizes(shape: str) -> dict[str, int]:
    """Bytes of each part's weights."""
    return {part: int(it.model_size()) for part, it in subject(shape).parts().items()}


def cell(shape: str, level: str, share: float | None, loras: int) -> dict[str, Any]:
    """Runs a cell; ``share`` is the budget's part of the model's bytes, ``None`` = no budget.

    Returns:
        ``budget`` in bytes; ``prompts`` with each one's peak (bytes, ``None`` on the CPU) and
        largest differences; ``refused`` and ``named``, the message and the bytes of a budget that
        was refused; ``changed``, ``leftovers``, ``left`` after undoing.
    """
    budget = None if share is None else int(subject(shape).model.model_size() * share)
    return named(shape, level, budget, loras)


def named(shape: str, level: str, budget: int | None, loras: int) -> dict[str, Any]:
    """As ``cell``, at a budget in bytes."""
    one = subject(shape)
    try:
        outcome: dict[str, Any] = {"prompts": run(one, level, budget, loras)}
    except BudgetError as error:
        outcome = {"refused": str(error), "named": named_budget(str(error)), "prompts": []}
    return {"budget": budget, **outcome, **undone(one)}


def run(one: Subject, level: str, budget: int | None, loras: int) -> list[dict[str, Any]]:
    """Three prompts: two on the same clones with other LoRA strengths, one with LoRAs first."""
    unload()
    name, found = one.shape.name, []
    for number in range(PROMPTS):
        reference(one, level, loras, number)  # made while nothing of ours is loaded
    config, _ = MemoryLevelSelector().run(level, (budget or 0) / GIB, "pressure")
    clones = OptimizePipeline().run(config, one.model, one.clip, one.vae)
    for number in range(PROMPTS):
        strength = STRENGTHS[number]
        if number < 2:
            model, clip = with_loras(name, clones[0], clones[1], loras, strength)
            vae = clones[2]
        else:
            model, clip = with_loras(name, one.model, one.clip, loras, strength)
            model, clip, vae = OptimizePipeline().run(config, model, clip, one.vae)[:3]
        handle = accelerator()
        if handle is not None:
            handle.reset_peaks()
        made = picture(one.shape, model, clip, vae, number)
        peak = None if handle is None else handle.peak_allocated
        op = None if handle is None else handle.peak_op
        latent, image = made.differences(reference(one, level, loras, number, made.apart))
        found.append(
            {
                "peak": peak,
                "op": op,
                "apart": made.apart,
                "latent": latent,
                "image": image,
            }
        )
    return found


def reference(one: Subject, level: str, loras: int, number: int, apart: bool = False) -> Picture:
    """Stock ComfyUI's picture; where weights are FP8, that of FP8 without any cap or budget."""
    name = one.shape.name
    if level != "ultra":
        return stock(name, loras, number, apart)
    key = (name, loras, number, apart)
    if key not in _fp8:
        unload()
        config = MemoryOptimizationConfig.from_level("none", fp8_storage=True)
        model, clip = with_loras(name, one.model, one.clip, loras, STRENGTHS[number])
        model, clip, vae = OptimizePipeline().run(config, model, clip, one.vae)[:3]
        model = singly(model) if apart else model
        _fp8[key] = picture(one.shape, model, clip, vae, number)
        unload()
    return _fp8[key]


def fp8_differs(shape: str) -> float:
    """How far FP8 is from stock: 0 would mean that nothing was cast."""
    one = subject(shape)
    return reference(one, "ultra", 0, 0).differences(stock(shape, 0, 0))[0]


def undone(one: Subject) -> dict[str, Any]:
    """What is found on the originals once the clones are no longer used."""
    unload()
    handle = accelerator()
    return {
        "changed": changed(one)[:5],
        "leftovers": leftovers(one)[:5],
        "left": 0 if handle is None else handle.allocated,
    }


_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def named_budget(message: str) -> int | None:
    """The bytes after "at least" in a refusal."""
    found = re.search(r"at least ([\d.,]+) (B|KB|MB|GB)\b", message)
    if found is None:
        return None
    return int(float(found.group(1).replace(",", "")) * _UNITS[found.group(2)])

"""ComfyUI's own choice on a small device, and a budget of the same peak: what either moves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import comfy.model_management as mm
import torch
from lowtide.memory.adapters.comfy import measured as measurements
from lowtide.memory.units import GIB
from lowtide.nodes.levels import MemoryLevelSelector
from lowtide.nodes.optimize import OptimizePipeline
from subjects import EDGE, Subject, accelerator, conditioning, subject, unload

import nodes

STEPS = 4
WARM = 3
"""Prompts under the budget, the last of which counts: the first one's steps are measured."""


@contextlib.contextmanager
def small(room: int) -> Iterator[None]:
    """ComfyUI takes the device for one of ``room`` bytes, and keeps its estimate of a run free.

    The gigabyte that it keeps besides is more than these models take.
    """
    free, reserve, least = mm.get_free_memory, mm.EXTRA_RESERVED_VRAM, mm.MIN_WEIGHT_MEMORY_RATIO
    inference = mm.minimum_inference_memory

    def little(dev: Any = None, torch_free_too: bool = False) -> Any:
        left = max(0, room - accelerator().allocated)
        return (left, left) if torch_free_too else left

    mm.EXTRA_RESERVED_VRAM, mm.MIN_WEIGHT_MEMORY_RATIO = 0, 0.0
    mm.minimum_inference_memory, mm.get_free_memory = lambda: 0, little
    try:
        yield
    finally:
        mm.minimum_inference_memory, mm.get_free_memory = inference, free
        mm.EXTRA_RESERVED_VRAM, mm.MIN_WEIGHT_MEMORY_RATIO = reserve, least


def beside_core(shape: str, share: float) -> dict[str, Any]:
    """Sampling and decoding from an empty device, by ComfyUI with room for ``share`` of the model
    besides its estimate, and under a budget of the peak that it has then, and of what a budget
    keeps free.

    Returns:
        ``core`` and ``ours``, each with ``peak`` and ``moved`` to the device in bytes.
    """
    one = subject(shape)
    estimate = int(one.model.memory_required([2, one.shape.channels, EDGE, EDGE]))
    prompts = conditioning(one.shape, one.clip, 0)
    with small(estimate + int(share * one.model.model_size())):
        core = _moved(one, prompts, one.model, one.vae)
    measurements.forget_all()
    config, _ = MemoryLevelSelector().run(
        "none", (core["peak"] + measurements.SLACK) / GIB, "always"
    )
    model, _, vae = OptimizePipeline().run(config, one.model, one.clip, one.vae)[:3]
    for _ in range(WARM):
        ours = _moved(one, prompts, model, vae)
    return {"core": core, "ours": ours}


def _moved(one: Subject, prompts: Any, model: Any, vae: Any) -> dict[str, int]:
    unload()
    handle = accelerator()
    assert handle.allocated == 0
    handle.reset_peaks()
    before = handle.counters()["h2d"]
    latent = {"samples": torch.zeros(1, one.shape.channels, EDGE, EDGE)}
    (sampled,) = nodes.common_ksampler(
        model, 0, STEPS, one.shape.cfg, "euler", "simple", *prompts, latent
    )
    nodes.VAEDecode().decode(vae, sampled)
    found = {"peak": handle.peak_allocated, "moved": handle.counters()["h2d"] - before}
    unload()
    return found

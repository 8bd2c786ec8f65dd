"""The largest batch that is predicted to fit a budget, beside what runs of it and one more take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lowtide.memory.adapters.comfy import measured as measurements
from lowtide.memory.adapters.comfy.plan_batches import BatchTraces, within_budget, within_device
from lowtide.memory.adapters.comfy.plan_budget import peak_of
from lowtide.memory.errors import BudgetError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.planner.planner import Limits
from lowtide.memory.planner.predict import predict
from lowtide.memory.units import GIB
from lowtide.nodes.levels import MemoryLevelSelector
from lowtide.nodes.optimize import OptimizePipeline
from planned import COSTS, EDGE, STEPS, subject_for
from subjects import Subject, accelerator, conditioning, subject, unload

import nodes

PLAIN = MemoryOptimizationConfig()


def on_the_line(shape: str, batch: int) -> dict[str, Any]:
    """Whether the traces of a batch made of two others are those that are recorded."""
    one = subject(shape)
    unload()
    recorded: list[int] = []
    traces = subject_for(one).traces
    whole = replace(traces, work=replace(traces.work, batch=batch))
    others = BatchTraces.beside(traces)
    found = others.of(batch)
    found._own = lambda: recorded.append(1) or whole
    same = {}
    for level in ("none", "aggressive"):
        config = MemoryOptimizationConfig.from_level(level)
        pairs = zip(found.turns(config), whole.turns(config), strict=True)
        for mine, theirs in pairs:
            same[f"{level} {mine.name}"] = (
                mine.trace.storages == theirs.trace.storages
                and mine.trace.operations == theirs.trace.operations
                and (mine.calls, mine.beside, mine.placement)
                == (theirs.calls, theirs.beside, theirs.placement)
            )
    return {"same": same, "recorded": len(recorded)}


def budget(shape: str, images: int) -> dict[str, Any]:
    """A budget between what ``images`` and one more need; both are run, twice each."""
    one = subject(shape)
    unload()
    measurements.forget_all()
    traces = subject_for(one).traces
    others = BatchTraces.beside(traces)
    needs = [
        max(peak_of(turn, 0.0) for turn in others.of(batch).lean(PLAIN.replace(budget_bytes=GIB)))
        for batch in (images, images + 1)
    ]
    given = round(sum(needs) / 2 / GIB, 4)
    config, _ = MemoryLevelSelector().run("none", given, "pressure")
    assert config.budget_bytes is not None
    found = within_budget(traces, PLAIN, Limits(config.budget_bytes, margin=0.0))
    careful = within_budget(traces, PLAIN, Limits(config.budget_bytes, margin=0.9))
    runs = {batch: _run(one, config, batch) for batch in (found, found + 1)}
    return {
        "needs": needs,
        "budget": config.budget_bytes,
        "largest": found,
        "careful": careful,
        "runs": list(runs.values()),
    }


def device(shape: str, images: int) -> dict[str, Any]:
    """As many images as fit what ``images`` reserve, and what the levels make of it."""
    one = subject(shape)
    unload()
    traces = subject_for(one).traces
    others = BatchTraces.beside(traces)
    free = predict(others.of(images).turns(PLAIN), **COSTS).peak_reserved
    less = predict(others.of(1).turns(PLAIN), **COSTS).peak_reserved
    lean = MemoryOptimizationConfig.from_level("aggressive")
    return {
        "largest": within_device(traces, PLAIN, free, COSTS),
        "aggressive": within_device(traces, lean, free, COSTS),
        "none": within_device(traces, PLAIN, less - 1, COSTS),
        "reserved": _run(one, PLAIN, images)["reserved"],
        "free": free,
    }


def _run(one: Subject, config: MemoryOptimizationConfig, batch: int) -> dict[str, Any]:
    """Two prompts of a batch through ComfyUI's own nodes."""
    unload()
    handle = accelerator()
    handle.empty_cache()
    model, clip, vae = OptimizePipeline().run(config, one.model, one.clip, one.vae)[:3]
    refused, peaks = None, []
    try:
        for _ in range(2):
            handle.reset_peaks()
            positive, negative = conditioning(one.shape, clip, 0)
            latent = {"samples": torch.zeros(batch, one.shape.channels, EDGE, EDGE)}
            scheduler = "simple" if one.shape.name == "flux" else "normal"
            (sampled,) = nodes.common_ksampler(
                model, 100, STEPS, one.shape.cfg, "euler", scheduler, positive, negative, latent
            )
            nodes.VAEDecode().decode(vae, sampled)
            peaks.append(handle.peak_allocated)
    except BudgetError as error:
        refused = str(error)
    reserved = handle.peak_reserved
    unload()
    return {"peaks": peaks, "refused": refused, "reserved": reserved}

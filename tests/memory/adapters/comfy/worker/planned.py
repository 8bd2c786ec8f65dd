"""Predictions for the loaded families beside what the accelerator counts while they run."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import comfy.model_management as mm
import torch
from lowtide.memory import profiles
from lowtide.memory.adapters.comfy import measured as measurements
from lowtide.memory.adapters.comfy.overlay import estimates, planned
from lowtide.memory.adapters.comfy.overlay.answers import Unknown
from lowtide.memory.adapters.comfy.plan_loaded import loaded_subject, prediction
from lowtide.memory.errors import BudgetError, LowtideError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.planner.cache import TraceCache
from lowtide.memory.planner.work import Work
from lowtide.memory.units import GIB
from lowtide.nodes.levels import MemoryLevelSelector
from lowtide.nodes.optimize import OptimizePipeline
from pretended import followed
from subjects import (
    STRENGTHS,
    Subject,
    accelerator,
    changed,
    conditioning,
    subject,
    unload,
    with_loras,
)
from traces import leftovers

import nodes

EDGE = 16
"""Latents of an image's edge."""
STEPS = 2
STAGES = ("encode", "denoise", "decode")
COSTS = {"rates": None, "workspace_factor": 0.0, "context_bytes": 0}
"""The accelerator counts tensors, and nothing inside kernels."""


def case(shape: str, level: str, share: float | None = None) -> dict[str, Any]:
    """Bytes allocated and reserved at the peak of each stage, predicted and measured.

    ``share`` is a budget's part of the model's bytes. The second of two prompts is measured: from
    then on what a budget leaves is known, and models that stay are all there.
    """
    one = subject(shape)
    unload()
    measurements.forget_all()  # of other budgets
    budget = None if share is None else int(one.model.model_size() * share)
    # With "always" only a text encoder stays, until the second text: the rest has the device alone.
    config, _ = MemoryLevelSelector().run(level, (budget or 0) / GIB, "always")
    begun = time.perf_counter()
    found = prediction(subject_for(one), config, COSTS)
    seconds = time.perf_counter() - begun
    model, clip, vae = OptimizePipeline().run(config, one.model, one.clip, one.vae)[:3]
    measured, refused = {}, None
    try:
        for _ in range(2):
            measured = measure(one, model, clip, vae)
    except BudgetError as error:
        refused = str(error)
    unload()
    return {
        "budget": budget,
        "seconds": seconds,
        "measured": measured,
        "refused": refused,
        "predicted": {
            name: (stage.peak_allocated_bytes, stage.peak_reserved_bytes, stage.operation)
            for name, stage in found.stages.items()
        },
    }


def encoding(level: str, share: float) -> dict[str, int]:
    """Bytes predicted to move while SD1.5 encodes its texts under a budget, and the weights."""
    one = subject("sd15")
    budget = int(one.model.model_size() * share)
    config, _ = MemoryLevelSelector().run(level, budget / GIB, "pressure")
    found = prediction(subject_for(one), config, COSTS).stages["encode"]
    return {"moved": found.moved_bytes, "weights": int(one.clip.patcher.model_size())}


def subject_for(one: Subject, **parts: Any) -> Any:
    """What is predicted of a family, its parts as loaded or as given."""
    factor = int(one.vae.spacial_compression_decode())
    work = Work(
        EDGE * factor,
        EDGE * factor,
        steps=STEPS,
        guided=one.shape.cfg != 1,
        words=None if one.clip else 16,
    )
    loaded = {"model": one.model, "clip": one.clip, "vae": one.vae, **parts}
    return loaded_subject(work, **loaded, attention="bare", workspace_factor=0)


def measure(one: Subject, model: Any, clip: Any, vae: Any) -> dict[str, Any]:
    """A prompt through ComfyUI's own nodes; peaks of its stages."""
    handle, found = accelerator(), {}
    handle.reset_peaks()

    def note(stage: str) -> None:
        found[stage] = handle.peak_allocated, handle.peak_reserved, handle.peak_op
        handle.reset_peaks()

    with followed(clip):
        positive, negative = conditioning(one.shape, clip, 0)
    note("encode")
    latent = {"samples": torch.zeros(1, one.shape.channels, EDGE, EDGE)}
    scheduler = "simple" if one.shape.name == "flux" else "normal"
    (sampled,) = nodes.common_ksampler(
        model, 100, STEPS, one.shape.cfg, "euler", scheduler, positive, negative, latent
    )
    note("denoise")
    nodes.VAEDecode().decode(vae, sampled)
    note("decode")
    return found


def states(shape: str) -> dict[str, Any]:
    """Traces of a model in all the states it may be found in, and what tracing left behind.

    Of each: how often the trace differs from that of the model as it was loaded, and bytes that
    came to the device or left it. ``seconds`` is a prediction whose traces are known.
    """
    one = subject(shape)
    unload()
    config = MemoryOptimizationConfig.from_level("aggressive")
    plain = subject_for(one).turns(config)
    handle, found = accelerator(), {}

    def ask(state: str, **parts: Any) -> None:
        before = handle.allocated, handle.peak_allocated
        turns = subject_for(one, store=TraceCache(Path(mkdtemp())), **parts).turns(config)
        same = all(a.trace.storages == b.trace.storages for a, b in zip(turns, plain, strict=True))
        weights = all(a.trace.weights == b.trace.weights for a, b in zip(turns, plain, strict=True))
        found[state] = same and weights and len(turns) == len(plain)
        found[state] &= (handle.allocated, handle.peak_allocated) == before

    for level, share in (("none", 0.6), ("ultra", 0)):
        budget = int(one.model.model_size() * share) / GIB
        chosen, _ = MemoryLevelSelector().run(level, budget, "off")
        made = OptimizePipeline().run(chosen, one.model, one.clip, one.vae)[:3]
        parts = dict(zip(("model", "clip", "vae"), made, strict=True))
        parts["model"], parts["clip"] = with_loras(shape, *made[:2], 5, STRENGTHS[0])
        mm.load_models_gpu([parts["model"], parts["clip"].patcher, parts["vae"].patcher])
        ask(f"{level}: optimised, with LoRAs, loaded", **parts)
        ask(f"{level}: the original, while a clone is loaded")
        unload()
    begun = time.perf_counter()
    prediction(subject_for(one), config, COSTS)
    seconds = time.perf_counter() - begun
    return {"states": found, "seconds": seconds, "changed": changed(one), "left": leftovers(one)}


def in_a_thread(shape: str) -> dict[str, Any]:
    """Predictions from another thread while a prompt runs in this one."""
    one = subject(shape)
    unload()
    config, _ = MemoryLevelSelector().run("ultra", 0, "off")
    model, clip, vae = OptimizePipeline().run(config, one.model, one.clip, one.vae)[:3]
    expected = [turn.trace.storages for turn in subject_for(one).turns(config)]
    done, found, wrong = threading.Event(), [], []

    def predict_on() -> None:
        while not done.is_set():
            try:
                store = TraceCache(Path(mkdtemp()))
                turns = subject_for(one, model=model, clip=clip, vae=vae, store=store).turns(config)
                found.append([turn.trace.storages for turn in turns] == expected)
            except LowtideError as error:
                wrong.append(str(error))

    thread = threading.Thread(target=predict_on)
    thread.start()
    try:
        for _ in range(3):
            measured = measure(one, model, clip, vae)
    finally:
        done.set()
        thread.join()
    alone = measure(one, model, clip, vae)
    unload()
    return {
        "same": found,
        "refused": wrong,
        "peaks": [[stage[name][0] for name in STAGES] for stage in (measured, alone)],
        "changed": changed(one),
    }


def refusals() -> dict[str, str]:
    """What is said of inputs that cannot be predicted."""
    one = subject("sd15")

    class Codes(torch.Tensor):
        pass

    found = {}
    weight = one.model.model.diffusion_model.out[2].weight
    for name, change in (("kind", Codes), ("none", None)):
        try:
            if change is not None:
                held = one.model.model.diffusion_model.out[2]._parameters
                held["weight"] = weight.data.as_subclass(change)
                subject_for(one).turns(MemoryOptimizationConfig())
            else:
                loaded_subject(Work())
        except LowtideError as error:
            found[name] = str(error)
        finally:
            one.model.model.diffusion_model.out[2]._parameters["weight"] = weight
    try:
        loaded_subject(Work(), clip=one.model)
    except LowtideError as error:
        found["wrong"] = str(error)
    return found


def as_a_source() -> dict[str, Any]:
    """What the overlay's fit check is told of a graph's nodes, at first and once it is known.

    Of each node: seconds the first question took, bytes needed, bytes that running it took.
    """
    one = subject("sd15")
    unload()
    latent = {"samples": torch.zeros(1, one.shape.channels, EDGE, EDGE)}
    pixels = torch.zeros(1, EDGE * 8, EDGE * 8, 3)
    config, _ = MemoryLevelSelector().run("ultra", 0, "off")
    model = OptimizePipeline().run(config, one.model)[0]
    held = {"m": one.model, "c": one.clip, "v": one.vae, "l": latent, "p": pixels, "u": model}
    graph = {
        "sample": {"model": ["m", 0], "latent_image": ["l", 0], "cfg": 4.0},
        "capped": {"model": ["u", 0], "latent_image": ["l", 0], "cfg": 4.0},
        "text": {"clip": ["c", 0], "text": "a"},
        "decode": {"vae": ["v", 0], "samples": ["l", 0]},
        "encode": {"vae": ["v", 0], "pixels": ["p", 0]},
        "other": {"image": ["p", 0]},
        "gone": {"model": ["x", 0], "latent_image": ["l", 0]},
    }
    graph = {name: {"class_type": "Any", "inputs": it} for name, it in graph.items()}
    named = {name: name for name in graph}
    found: dict[str, Any] = {}
    known, planned.cached = planned.cached, lambda link, _: held.get(link[0])
    sizes, estimates.cached = estimates.cached, lambda link, _: held.get(link[0])
    costs = profiles.known
    profiles.known = lambda *names: replace(costs(*names), workspace_factor=0.0)
    planned.forget()
    try:
        for name in graph:
            begun = time.perf_counter()
            answer = planned.predicted(graph, name, named)
            seconds = time.perf_counter() - begun
            deadline = time.monotonic() + 60
            while isinstance(answer, Unknown) and time.monotonic() < deadline:
                answer = planned.predicted(graph, name, named)
            begun = time.perf_counter()
            planned.predicted(graph, name, named)
            again = time.perf_counter() - begun
            found[name] = {"first": seconds, "again": again, "answer": answer}
    finally:
        planned.cached, estimates.cached, profiles.known = known, sizes, costs
    handle = accelerator()

    def run(name: str, work: Any) -> None:
        unload()
        handle.reset_peaks()
        work()
        found[name]["taken"] = handle.peak_allocated

    positive, negative = conditioning(one.shape, one.clip, 0)

    def sampled(which: Any) -> Any:
        return lambda: nodes.common_ksampler(
            which, 1, STEPS, 4.0, "euler", "normal", positive, negative, latent
        )

    run("sample", sampled(one.model))
    run("capped", sampled(model))
    run("text", lambda: nodes.CLIPTextEncode().encode(one.clip, "a"))
    run("decode", lambda: nodes.VAEDecode().decode(one.vae, latent))
    run("encode", lambda: nodes.VAEEncode().encode(one.vae, pixels))
    unload()
    return found

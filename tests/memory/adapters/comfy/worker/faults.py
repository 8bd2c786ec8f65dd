"""Whole prompts through ComfyUI's executor, each with one fault of the accelerator in it.

Two kinds of fault: ``once``, an allocation fails though there is memory, and ``short``, from an
allocation on the device is too small for what the prompt has begun. Each prompt has an executor,
and so a cache, of its own; ComfyUI's process is the same for all, as a server's is.
"""

from __future__ import annotations

import functools
import inspect
import time
from typing import Any

import comfy.model_management as mm
import execution
import torch
from lowtide import NODE_CLASS_MAPPINGS
from lowtide.memory.adapters.comfy import executor
from lowtide.memory.adapters.comfy.patchers import restore_cast_flags
from subjects import accelerator, changed, subject, unload, with_loras
from traces import leftovers

import nodes

SHAPE = "sd15"
CAPACITY = 4 << 30
STEPS = 1
_images: list[torch.Tensor] = []
_then: list[tuple[int, int]] = []
"""After how many encoded texts the device is to shrink, and to which capacity."""
_encoded = [0]


class Loader:
    """Gives a family's MODEL and CLIP with two LoRAs, and its VAE."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"shape": ("STRING", {})}}

    def run(self, shape: str) -> tuple[Any, Any, Any]:
        one = subject(shape)
        return *with_loras(shape, one.model, one.clip, 2, 0.8), one.vae


class Encode(nodes.CLIPTextEncode):
    """The core's; the device may be smaller from here on."""

    def encode(self, clip: Any, text: str) -> tuple[Any]:
        _shrink(_encoded[0])
        _encoded[0] += 1
        return super().encode(clip, text)


class Encoded:
    """Hands two conditionings on; the device may be smaller from here on."""

    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"one": ("CONDITIONING", {}), "other": ("CONDITIONING", {})}}

    def run(self, one: Any, other: Any) -> tuple[Any, Any]:
        _shrink(2)
        return one, other


class Keep:
    """Keeps the image for the test."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE", {})}}

    def run(self, image: torch.Tensor) -> dict[str, Any]:
        _images.append(image.cpu().clone())
        return {"ui": {"n": [1]}}


nodes.NODE_CLASS_MAPPINGS.update(NODE_CLASS_MAPPINGS)
nodes.NODE_CLASS_MAPPINGS |= {
    "TestLoader": Loader,
    "TestEncode": Encode,
    "TestEncoded": Encoded,
    "TestKeep": Keep,
}


class Server:
    """What the executor tells of its progress; nobody listens."""

    client_id = last_node_id = last_prompt_id = None
    sockets_metadata: dict[str, object] = {}

    def send_sync(self, event: str, data: object, sid: object = None) -> None:
        pass


def _shrink(after: int) -> None:
    """What the device's owner does to the prompt that ``_then`` describes."""
    if _then and _then[0][0] == after:
        unload()
        for part in subject(SHAPE).parts().values():
            restore_cast_flags(part.model)
        accelerator()(capacity=_then[0][1])


def _graph(edge: int, selector: dict[str, Any]) -> dict[str, dict[str, Any]]:
    size = {"width": edge, "height": edge, "batch_size": 1}
    sampling = {"seed": 7, "steps": STEPS, "cfg": 4.0, "denoise": 1.0}
    sampling |= {"sampler_name": "euler", "scheduler": "normal"}
    wired = {"positive": ["c", 0], "negative": ["c", 1], "latent_image": ["e", 0]}
    wired["model"] = ["o", 0]
    parts = {"config": ["s", 0], "model": ["l", 0], "clip": ["l", 1], "vae": ["l", 2]}
    return {
        "l": {"class_type": "TestLoader", "inputs": {"shape": SHAPE}},
        "s": {"class_type": "LowtideMemoryLevelSelector", "inputs": selector},
        "o": {"class_type": "LowtideOptimizePipeline", "inputs": parts},
        "p": {"class_type": "TestEncode", "inputs": {"text": "a boat", "clip": ["o", 1]}},
        "n": {"class_type": "TestEncode", "inputs": {"text": "blurry", "clip": ["o", 1]}},
        "c": {"class_type": "TestEncoded", "inputs": {"one": ["p", 0], "other": ["n", 0]}},
        "e": {"class_type": "EmptyLatentImage", "inputs": size},
        "k": {"class_type": "KSampler", "inputs": {**sampling, **wired}},
        "d": {"class_type": "VAEDecode", "inputs": {"samples": ["k", 0], "vae": ["o", 2]}},
        "i": {"class_type": "TestKeep", "inputs": {"image": ["d", 0]}},
    }


def _executor() -> Any:
    more: dict[str, object] = {}
    if "cache_args" in inspect.signature(execution.PromptExecutor.__init__).parameters:
        more["cache_args"] = {"lru": 0, "ram": 1.0, "ram_inactive": 1.0}
    return execution.PromptExecutor(Server(), cache_type=execution.CacheType.CLASSIC, **more)


def _run(edge: int, selector: dict[str, Any]) -> dict[str, Any]:
    """One prompt; whatever escapes ComfyUI's executor ends a server's worker, and is let out."""
    handle = accelerator()
    _images.clear()
    _encoded[0] = 0
    runner = _executor()
    started = time.perf_counter()
    with torch.inference_mode(False):
        runner.execute(_graph(edge, selector), "prompt", {}, ["i"])
    seconds = time.perf_counter() - started
    runs = executor.timelines()
    errors = [data for event, data in runner.status_messages if event == "execution_error"]
    return {
        "succeeded": runner.success,
        "error": errors[-1]["exception_type"] if errors else None,
        "node": errors[-1]["node_id"] if errors else None,
        "attempts": [list(it.values()) for it in runs[-1]["attempts"]] if runs else [],
        "allocated": handle.allocated,
        "reserved": handle.reserved,
        "models": sum(int(it.model_loaded_memory()) for it in mm.current_loaded_models),
        "seconds": seconds,
    }


def _selector(level: str, rescue: str, cleanup: str) -> dict[str, Any]:
    return {"level": level, "budget_gb": 0.0, "cleanup": cleanup, "rescue": rescue}


@functools.cache
def _undisturbed(edge: int, cleanup: str) -> tuple[dict[str, Any], torch.Tensor]:
    """The second of two prompts: the first makes what a process makes only once."""
    handle = accelerator()
    selector = _selector("none", "on", cleanup)
    for _ in range(2):
        unload()
        handle.empty_cache()
        handle.reset_counters()
        found = _run(edge, selector)
        assert found["succeeded"], found
        found["allocations"] = handle.counters()["allocations"]
    return found, _images[0]


def undisturbed(edge: int, cleanup: str) -> dict[str, Any]:
    """The prompt without a fault, its allocations counted."""
    return _undisturbed(edge, cleanup)[0]


@functools.cache
def _streamed(edge: int, capacity: int) -> list[torch.Tensor]:
    """What the core makes of the prompt where it streams by itself, from each model on.

    The newer core rounds LoRAs of streamed weights in another way than those of resident ones.
    The older one cannot stream on so small a device, and adds nothing.
    """
    handle = accelerator()
    made = []
    for after in range(3):
        unload()
        handle.empty_cache()
        _then[:] = [(after, capacity)]
        try:
            found = _run(edge, _selector("none", "off", "always"))
        finally:
            _then.clear()
            handle(capacity=CAPACITY)
        if found["succeeded"]:
            made.append(_images[0])
    unload()
    for part in subject(SHAPE).parts().values():
        restore_cast_flags(part.model)
    return made


def fault(edge: int, k: int, *, capacity: int | None, rescue: str, cleanup: str) -> dict[str, Any]:
    """The prompt with allocation ``k`` failing, or finding ``capacity``, once it is there."""
    baseline, expected = _undisturbed(edge, cleanup)
    images = [expected, *([] if capacity is None else _streamed(edge, capacity))]
    handle = accelerator()
    unload()
    handle.empty_cache()
    assert (handle.allocated, handle.reserved) == (0, 0)
    handle.reset_counters()
    handle.fail_allocation(k)
    if capacity is not None:
        handle.shrink_at(k, capacity)
    try:
        found = _run(edge, _selector("none", rescue, cleanup))
    finally:
        handle.clear_fault()
        handle(capacity=CAPACITY)
    found |= {"k": k, "differences": [], "ooms": handle.counters()["ooms"]}
    if _images:
        (image,) = _images
        found["differences"] = [(image - other).abs().max().item() for other in images]
    found["above"] = [found[name] - baseline[name] for name in ("allocated", "reserved")]
    # Fewer models may be on the device than after the undisturbed prompt: each is accounted for.
    found["untracked"] = found["allocated"] - found["models"]
    unload()
    handle.empty_cache()
    found["left"] = [handle.allocated, handle.reserved]
    return found


def faults(ks: list[int], **arguments: Any) -> list[dict[str, Any]]:
    """``fault`` at each k."""
    return [fault(k=k, **arguments) for k in ks]


def undone() -> dict[str, Any]:
    """What all prompts so far left on the originals."""
    executor.uninstall()
    one = subject(SHAPE)
    return {"changed": changed(one), "leftovers": leftovers(one)}

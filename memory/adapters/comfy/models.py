"""What ComfyUI holds on its devices, and taking it off through ComfyUI's own accounting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .limits import streams_all

_EVERYTHING = 1e30


@dataclass(frozen=True)
class LoadedModel:
    """One model ComfyUI knows to be loaded."""

    name: str
    device: str
    on_device: int
    """Bytes of its weights on the device."""
    size: int
    """Bytes of its weights in all."""


def loaded_models() -> list[LoadedModel]:
    """The models ComfyUI counts as loaded, most recent first."""
    return [
        LoadedModel(
            type(patcher.model).__name__,
            str(patcher.load_device),
            int(patcher.loaded_size()),
            int(patcher.model_size()),
        )
        for patcher in _patchers()
    ]


def loaded_bytes(patcher: Any) -> int:
    """Bytes of this patcher's weights, or its clones', on the device."""
    return sum(int(found.loaded_size()) for found in _patchers() if patcher.is_clone(found))


def leave_device(patcher: Any) -> None:
    """Take a model and its clones off the device; nothing where device and host are one."""
    import comfy.model_management as mm

    if patcher.load_device == patcher.offload_device:
        return
    keep = [
        entry
        for entry in mm.current_loaded_models
        if entry.model is None or not patcher.is_clone(entry.model)
    ]
    if len(keep) < len(mm.current_loaded_models):
        mm.free_memory(_EVERYTHING, patcher.load_device, keep)
        drop_cast_buffers()


def unload(patcher: Any) -> None:
    """Take a model and its clones off the device, and whatever was written into its weights."""
    import comfy.model_management as mm

    for entry in list(mm.current_loaded_models):
        if entry.model is not None and patcher.is_clone(entry.model):
            entry.model_unload()
            mm.current_loaded_models[:] = [e for e in mm.current_loaded_models if e is not entry]
    if patcher.model.current_weight_patches_uuid is not None:
        patcher.detach()  # the clone that loaded it is gone
    drop_cast_buffers()


def unload_others(*patchers: Any) -> None:
    """Take every model but these and their clones off their device.

    A model in the middle of a sampling stays where it is and has all its weights streamed: nobody
    would load it again before its next step.
    """
    import comfy.model_management as mm

    keep = []
    for entry in list(mm.current_loaded_models):
        if entry.model is None or any(patcher.is_clone(entry.model) for patcher in patchers):
            keep.append(entry)
        elif samples(entry.model):
            keep.append(entry)
            if entry.device == patchers[0].load_device and streams_all(entry.model.model):
                entry.model.partially_unload(entry.model.offload_device, _EVERYTHING)
    mm.free_memory(_EVERYTHING, patchers[0].load_device, keep)


def unload_all(keep: frozenset[str] = frozenset()) -> None:
    """Take every model off every device ComfyUI has one on, but those named, in lower case.

    By the devices of the models themselves: the core's list of devices is empty where a CUDA
    build of torch runs on another accelerator, and its own ``unload_all_models`` does nothing.
    """
    import comfy.model_management as mm

    kept = [
        entry
        for entry in mm.current_loaded_models
        if entry.model is not None and type(entry.model.model).__name__.casefold() in keep
    ]
    for device in list({entry.device: None for entry in mm.current_loaded_models}):
        mm.free_memory(_EVERYTHING, device, kept)
    mm.cleanup_models()


def make_room(need: int) -> int:
    """Have ComfyUI free ``need`` bytes on its device; returns the bytes of models taken off."""
    import comfy.model_management as mm

    before = sum(model.on_device for model in loaded_models())
    device = mm.get_torch_device()
    if device.type != "cpu":
        mm.free_memory(need + mm.minimum_inference_memory(), device)
    return before - sum(model.on_device for model in loaded_models())


def empty_caches() -> None:
    """Return what the core and torch's allocator hold without using it."""
    import comfy.model_management as mm

    drop_cast_buffers()
    mm.soft_empty_cache()


def drop_results_after_this_run(*, unload: bool) -> bool:
    """Have ComfyUI drop its cached results once the current prompt is done; False without one.

    ``unload`` also takes every model off the device then; without it they stay, unless somebody
    else asked for that: left unsaid, the core unloads whenever results are dropped.

    Never at once: a cache that vanishes under a running prompt breaks it.
    """
    import sys

    server = getattr(sys.modules.get("server"), "PromptServer", None)
    instance = getattr(server, "instance", None)
    queue = getattr(instance, "prompt_queue", None)
    if queue is None:
        return False
    asked = queue.get_flags(reset=False).get("unload_models", False)
    queue.set_flag("unload_models", unload or asked)
    queue.set_flag("free_memory", True)
    return True


def drop_cast_buffers() -> None:
    """Each stream may keep a buffer as large as the largest weight it streamed."""
    import comfy.model_management as mm

    reset = getattr(mm, "reset_cast_buffers", None)
    if reset is not None:
        reset()


def weights_on_device() -> list[Any]:
    """Tensors of the models ComfyUI counts as loaded, wherever they are."""
    return [
        tensor
        for patcher in _patchers()
        for tensor in (*patcher.model.parameters(), *patcher.model.buffers())
    ]


def pinned_bytes() -> int:
    """Bytes of host memory newer cores have pinned for the device to copy from."""
    import comfy.model_management as mm

    return int(getattr(mm, "TOTAL_PINNED_MEMORY", 0))


def any_samples() -> bool:
    """Whether a loaded model is in the middle of a sampling."""
    return any(map(samples, _patchers()))


def samples(patcher: Any) -> bool:
    """Whether a sampling of this patcher's model has begun and not ended."""
    return getattr(patcher.model, "current_patcher", None) is not None


def cast_buffers() -> int:
    """Bytes of the buffers on the device that newer cores keep for streaming."""
    return sum(_cast_buffer_sizes())


def largest_cast_buffer() -> int:
    """Bytes of the largest of them, 0 where there is none yet."""
    return max(_cast_buffer_sizes(), default=0)


def _cast_buffer_sizes() -> list[int]:
    import comfy.model_management as mm

    kept = getattr(mm, "STREAM_CAST_BUFFERS", None) or {}
    return [int(buffer.nbytes) for buffer in kept.values()]


def _patchers() -> list[Any]:
    import comfy.model_management as mm

    found = [entry.model for entry in list(mm.current_loaded_models)]
    return [patcher for patcher in found if patcher is not None]

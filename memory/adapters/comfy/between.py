"""The cleanup policy between two nodes: which models leave the device now, and why.

A model that no later node of the prompt needs leaves at once under ``always``, and under
``pressure`` once the device is short of memory, or has less free than a later node's model still
needs. One that is still needed stays: moving it twice would cost more than it frees, and ComfyUI
itself makes room for what comes next. In a prompt with ``always`` that holds for models no Lowtide
node was given, too.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from ... import backend
from ...cleanup import PRESSURE_SHARE, cleanup_due
from ...levels import MemoryOptimizationConfig
from ...timeline import Release
from ...trim import trim_host
from .models import (
    drop_cast_buffers,
    drop_results_after_this_run,
    empty_caches,
    leave_device,
)
from .residency import residency_of

AMPLE = 0.5
"""With this part of the device free, nobody asks what the later nodes need."""

Note = Callable[[Release], None]


def after_node(
    node: str,
    needed: Callable[[], list[Any] | None],
    note: Note,
    *,
    always: bool = False,
    config: MemoryOptimizationConfig | None = None,
) -> None:
    """Take off the device what its policy no longer keeps there.

    Args:
        node: the node that has just ended.
        needed: gives the patchers that later nodes need, ``None`` if that can't be known (then
            all stay). Called only when a loaded model has a policy that may act.
        note: is told of every model that left.
        always: models without a policy of their own leave too.
        config: whose ``after_unload`` says whether the caches are emptied then.
    """
    candidates = [patcher for patcher in _on_device() if _may_act(patcher, always)]
    if not candidates:
        return
    later = needed()
    if later is None:
        return
    left = False
    for patcher in candidates:
        if any(patcher.is_clone(other) for other in later):
            continue
        if _acts(patcher, always) or _lacks_room(later, patcher.load_device):
            note(_leave(patcher, node, "no later node needs it"))
            left = True
    if left and (config is None or config.after_unload):
        empty_caches()


@torch.inference_mode()
def after_run(note: Note, *, always: bool, config: MemoryOptimizationConfig | None = None) -> None:
    """The end of a prompt: models leave by their policy.

    With ``always`` all of them leave, those too that Lowtide did not optimise, such as a ControlNet
    or an upscaler that was loaded beside; the caches are emptied, and garbage that still holds
    device memory is collected, as far as any is left. By choice of ``config`` the host's memory
    goes as well. In inference mode, as while the prompt ran: see ``inference_weights``.
    """
    left = False
    for patcher in _on_device():
        if always or _acts(patcher, always):
            note(_leave(patcher, None, "the run is over"))
            left = True
    if always:
        settle()
    elif left:
        empty_caches()
    if config is not None and config.cleanup_host and (always or left):
        drop_results_after_this_run(unload=True)
        trim_host()


def at(moment: str, node: str, config: MemoryOptimizationConfig, note: Note) -> None:
    """Collect young garbage and empty the caches, if ``config`` says so for this moment."""
    import comfy.model_management as mm

    device = backend.device_of(mm.get_torch_device())
    if not cleanup_due(config, moment, device):
        return
    started, before = time.perf_counter(), backend.reserved(device) or 0
    gc.collect(1)
    if moment == "after_step":
        # Hazard: the core's streaming buffers carry state from one step to the next.
        backend.empty_cache(device)
    else:
        empty_caches()
    if config.cleanup_host:
        trim_host()
    freed = before - (backend.reserved(device) or 0)
    if freed > 0:
        seconds = time.perf_counter() - started
        note(Release(node, "caches and garbage", freed, seconds, moment.replace("_", " ")))


def settle() -> None:
    """Empty every cache; collect garbage only while tensors no model accounts for are left."""
    import comfy.model_management as mm

    device = backend.device_of(mm.get_torch_device())
    with contextlib.suppress(RuntimeError):  # an earlier failure, which its own node reports
        backend.synchronize(device)
    drop_cast_buffers()
    backend.drop_workspaces(device)
    for generation in (1, 2):
        if _untracked(device) <= 0:
            break
        gc.collect(generation)
    empty_caches()
    backend.empty_cache(device)


def any_has_policy(policy: str) -> bool:
    """Whether a model that is loaded carries that policy."""
    return any(
        found is not None and found.cleanup == policy for found in map(residency_of, _on_device())
    )


def _untracked(device: Any) -> int:
    held = backend.allocated(device) or 0
    return held - sum(int(patcher.loaded_size()) for patcher in _on_device())


def _on_device() -> list[Any]:
    import comfy.model_management as mm

    return [
        entry.model
        for entry in list(mm.current_loaded_models)
        if entry.model is not None and entry.model.load_device != entry.model.offload_device
    ]


def _acts(patcher: Any, always: bool) -> bool:
    """Whether a model may leave now: by its own policy, or else by that of the prompt."""
    residency = residency_of(patcher)
    if residency is None:
        return always
    return residency.cleanup == "always" or (
        residency.cleanup == "pressure" and is_short(patcher.load_device)
    )


def _may_act(patcher: Any, always: bool) -> bool:
    """As ``_acts``, or a model with ``pressure`` on a device of which half is taken."""
    residency = residency_of(patcher)
    if residency is None or residency.cleanup != "pressure":
        return _acts(patcher, always)
    return is_short(patcher.load_device) or _less_free(patcher.load_device, AMPLE)


def _lacks_room(later: list[Any], device: Any) -> bool:
    """Whether a model of a later node needs more for its weights than the device has free."""
    import comfy.model_management as mm

    missing = [
        int(patcher.model_size()) - int(patcher.loaded_size())
        for patcher in later
        if patcher.load_device == device
    ]
    return max(missing, default=0) > mm.get_free_memory(device) - mm.minimum_inference_memory()


def is_short(device: Any) -> bool:
    """Whether less than 15% of the device is free; one that does not say counts as short."""
    return _less_free(device, PRESSURE_SHARE)


def _less_free(device: Any, share: float) -> bool:
    info = backend.mem_get_info(backend.device_of(device))
    return info is None or info[0] < share * info[1]


def _leave(patcher: Any, node: str | None, reason: str) -> Release:
    started = time.perf_counter()
    freed, owner = int(patcher.loaded_size()), type(patcher.model).__name__
    leave_device(patcher)
    return Release(node, owner, freed, time.perf_counter() - started, reason)

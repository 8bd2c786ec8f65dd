"""DynamicVRAM: ComfyUI's comfy-aimdo places weights itself, in pages that it maps when needed.

Such patchers are never hooked over. What is done goes through what the library offers: a model's
pages lie in one range of addresses, most wanted weights first, and ``set_watermark(bytes)`` says
how much of the range may be backed by memory. Pages above it are freed at once, or when the layer
that uses them is done, and a weight that ends above it is streamed. ComfyUI lifts the watermark at
every load, so it is set again after each.

``set_watermark_limit`` is no such cap: it protects pages from being evicted, and ComfyUI resets it
after every node. The headrooms (``--reserve-vram``, ``--vram-headroom``) are the whole process's
and can be set but not read, so they are left to the user.

Read from comfy-aimdo 0.4.13 and its source; its driver was never at hand, so that no test here has
seen a real page.
"""

from __future__ import annotations

import inspect
import logging
import sys
from typing import Any

from ... import backend
from ...strategies.base import Applied, Outcome, Skipped
from ...units import MIB, format_bytes
from .patchers import is_dynamic, marked
from .residency import Residency, residency_of

logger = logging.getLogger("lowtide")

PAGE = 32 * MIB
"""Bytes of one page; the library rounds a watermark up to whole pages."""

_KEY = "lowtide"


def active() -> bool:
    """Whether this ComfyUI places weights by DynamicVRAM."""
    return bool(getattr(sys.modules.get("comfy.memory_management"), "aimdo_enabled", False))


def limited(patcher: Any, residency: Residency) -> Any:
    """A clone of a dynamic patcher whose pages are limited after every load, where they can be."""
    from comfy.patcher_extension import CallbacksMP, WrappersMP

    clone = marked(patcher, residency)
    if not can_limit(patcher):
        return clone
    clone.remove_callbacks_with_key(CallbacksMP.ON_LOAD, _KEY)
    clone.add_callback_with_key(CallbacksMP.ON_LOAD, _KEY, limit_pages)
    clone.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, _KEY)
    if residency.budget is not None:
        clone.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, _KEY, note_activations)
    return clone


def limit_pages(patcher: Any, *_args: Any, **_options: Any) -> None:
    """ON_LOAD callback: at most ``Residency.weights`` bytes of pages, whole pages, rounded down.

    A plain function, for the core copies callbacks from clone to clone. Never raises.
    """
    try:
        allowed = _allowed(patcher)
        if allowed is None or not is_dynamic(patcher):
            return
        setter = _setter(patcher)
        if setter is None:
            logger.warning(
                "this comfy-aimdo has no page limit; the weights of %s are left to ComfyUI",
                type(patcher.model).__name__,
            )
        else:
            setter(allowed)
    except Exception:
        logger.exception("Lowtide could not limit DynamicVRAM's pages; they are left to ComfyUI")


def note_activations(
    executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any
) -> Any:
    """Before sampling under a budget: keep the core's estimate of activations for the limit."""
    try:
        from comfy.sampler_helpers import estimate_memory

        model.lowtide_activations = int(estimate_memory(model, noise_shape, conds)[0])
    except Exception:
        logger.exception("Lowtide has no estimate of activations; the page limit leaves them out")
    return executor(model, noise_shape, conds, *args, **kwargs)


def can_limit(patcher: Any) -> bool:
    """Whether this patcher and the installed comfy-aimdo offer what a limit needs."""
    if not (hasattr(patcher, "_vbar_get") and hasattr(patcher, "add_callback_with_key")):
        return False
    pages = patcher._vbar_get()
    if pages is None:  # the core makes them at the first load
        pages = getattr(sys.modules.get("comfy_aimdo.model_vbar"), "ModelVBAR", None)
    return hasattr(pages, "set_watermark")


def outcome(patcher: Any, residency: Residency, part: str, undo: Any) -> list[Outcome]:
    """What is held and what is left to the core on a dynamic ``patcher``."""
    strategy = "resident cap"
    weights = residency.weights(None)
    if weights is None:
        return []
    if not can_limit(patcher):
        return [
            Skipped(strategy, part, "left to ComfyUI: its DynamicVRAM offers no limit of pages"),
            *_budget(residency, part, "left to ComfyUI: its DynamicVRAM takes no limit"),
        ]
    held, size = _whole_pages(weights), int(patcher.model_size())
    detail = (
        f"at most {format_bytes(held)} of {format_bytes(size)} in DynamicVRAM's pages, set again "
        f"after every load, the rest streamed"
    )
    if residency.budget is not None:
        detail += "; less what ComfyUI estimates for activations"
    why = "held for pages of weights only: what else is allocated is ComfyUI's, and may exceed it"
    return [Applied(strategy, part, detail, undo), *_budget(residency, part, why)]


def vae_budget(patcher: Any) -> list[Outcome]:
    """What a budget means for a VAE on a dynamic patcher."""
    why = "its tiles follow the budget; its weights are left to ComfyUI's DynamicVRAM"
    return [Skipped("budget", "vae", why)] if is_dynamic(patcher) else []


def notes(patchers: dict[str, Any]) -> list[str]:
    """What is left to the core on dynamic ``patchers`` (part -> patcher), and the way out."""
    parts = [part for part, patcher in patchers.items() if is_dynamic(patcher)]
    if not parts:
        return []
    found = [
        f"DynamicVRAM places the weights of {', '.join(parts)}: which weights are resident, when "
        f"they move, and FP8 storage are left to ComfyUI. Lowtide limits pages through "
        f"comfy-aimdo's own interface, which its tests have not seen on a GPU"
    ]
    if _has_flag("disable_dynamic_vram"):
        found.append(
            "for weights placed by Lowtide (budgets, FP8 storage) start ComfyUI with "
            "--disable-dynamic-vram" + _static_clone([patchers[part] for part in parts])
        )
    return found


def pages(device: Any) -> int:
    """Bytes of weights in DynamicVRAM's pages on ``device``, which torch does not count; else 0.

    The library's ``get_total_vram_usage`` is another figure: it counts torch's own allocations
    too. From any thread: only models ComfyUI has loaded are read, one figure each.
    """
    if not active():
        return 0
    import comfy.model_management as mm

    found: dict[int, int] = {}
    for entry in list(mm.current_loaded_models):
        patcher = entry.model
        if patcher is None or not is_dynamic(patcher) or not hasattr(patcher, "_vbar_get"):
            continue
        if backend.device_of(patcher.load_device) == backend.device_of(device):
            vbar = patcher._vbar_get()
            if hasattr(vbar, "loaded_size"):
                found[id(vbar)] = int(vbar.loaded_size())
    return sum(found.values())


def _allowed(patcher: Any) -> int | None:
    residency = residency_of(patcher)
    if residency is None:
        return None
    weights = residency.weights(getattr(patcher, "lowtide_activations", None))
    return None if weights is None else _whole_pages(weights)


def _whole_pages(size: int) -> int:
    return size // PAGE * PAGE


def _setter(patcher: Any) -> Any:
    get = getattr(patcher, "_vbar_get", None)
    return None if get is None else getattr(get(), "set_watermark", None)


def _budget(residency: Residency, part: str, why: str) -> list[Outcome]:
    return [] if residency.budget is None else [Skipped("budget", part, why)]


def _has_flag(name: str) -> bool:
    return hasattr(getattr(sys.modules.get("comfy.cli_args"), "args", None), name)


def _static_clone(patchers: list[Any]) -> str:
    """The other way to a static model, where the core has it; never taken by itself."""
    clones = [patcher for patcher in patchers if _can_disable(patcher)]
    if not clones:
        return ""
    text = "; a node that calls clone(disable_dynamic=True) makes one model static, which loads it"
    text += " from disk again and keeps a second copy in RAM"
    if any(getattr(patcher, "cached_patcher_init", None) is None for patcher in clones):
        text += ", and fails for models that, as here, don't come from ComfyUI's own loaders"
    return text


def _can_disable(patcher: Any) -> bool:
    try:
        return "disable_dynamic" in inspect.signature(patcher.clone).parameters
    except (TypeError, ValueError):
        return False

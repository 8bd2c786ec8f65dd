"""Other packs that change what Lowtide changes, found by what they leave on a model.

They are never imported. ``left_alone`` says which patchers get no cap; ``notes`` names the rest,
one sentence each on what follows. Names of classes and attributes are those in the packs' sources.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from ...units import format_bytes
from . import dynamic, start_flags
from .patchers import is_dynamic

logger = logging.getLogger("lowtide")

PROVEN = ("GGUFModelPatcher",)
"""Patchers of other packs that move weights in their own way and still keep a cap: a test with a
stand-in that overrides the same methods says so."""

PLACING = ("load", "partially_load", "partially_unload", "detach")
"""Methods of a patcher that decide where weights are."""

STUCK_SHARE = 0.125
"""Part of a model in layers that cannot be streamed above which it gets no cap. Below it they are
norms and embeddings, which bring their weights to the input themselves."""

_CORE = "comfy."
_OURS = __name__.rsplit(".", 1)[0]


def left_alone(patcher: Any) -> str | None:
    """Why this patcher's weights are left where its pack or the core puts them; else ``None``."""
    model = patcher.model
    if hasattr(model, "_distorch_v2_meta"):
        return "left alone: DisTorch (ComfyUI-MultiGPU) spreads its layers over devices by a plan"
    owner = placed_by(type(patcher))
    if owner is not None and owner.__name__ not in PROVEN:
        return f"left alone: {_named(owner)} moves its weights itself"
    if is_dynamic(patcher):
        return None  # the core loads what it cannot stream
    return stays(patcher) or _stuck(model)


def stays(patcher: Any) -> str | None:
    """Why a model cannot leave its device; ``None`` where it can."""
    device = patcher.load_device
    if device != patcher.offload_device or getattr(device, "type", "cpu") == "cpu":
        return None
    return f"it has nowhere to go: ComfyUI keeps it on {device} (--gpu-only, --highvram)"


def placed_by(kind: type) -> type | None:
    """The class of another pack that overrides where weights are; ``None`` for the core's own."""
    for base in kind.__mro__:
        foreign = not base.__module__.startswith((_CORE, _OURS)) and base is not object
        if foreign and any(name in vars(base) for name in PLACING):
            return base
    return None


def parts_of(model: Any, clip: Any, vae: Any) -> dict[str, Any]:
    """The patchers behind a MODEL, a CLIP and a VAE, by the names reports use."""
    found = {
        "model": model,
        "text encoder": getattr(clip, "patcher", None),
        "vae": getattr(vae, "patcher", None),
    }
    return {part: patcher for part, patcher in found.items() if patcher is not None}


def notes(parts: dict[str, Any]) -> list[str]:
    """What else changes the memory of these patchers (part -> patcher), and what follows.

    Whatever a foreign object raises while it is looked at is logged, never raised.
    """
    found = _guarded(start_flags.notes)
    found += _guarded(lambda: dynamic.notes(parts))
    for part, patcher in parts.items():
        for look in (_compiled, _attention, _wrapped, _quantised, _several_devices):
            found += [f"{part}: {text}" for text in _guarded(lambda: look(patcher))]  # noqa: B023
    return found + _guarded(_packs)


def _guarded(look: Callable[[], list[str]]) -> list[str]:
    try:
        return look()
    except Exception:
        logger.exception("Lowtide could not look at what another pack changed")
        return []


def _stuck(model: Any) -> str | None:
    """Layers that are no ComfyUI operations stay where they are when they don't fit."""
    inner = getattr(model, "diffusion_model", None)
    if inner is not None and not hasattr(inner, "named_modules"):
        return (
            f"left alone: its weights are in a {type(inner).__name__}, as of TensorRT, out of "
            f"ComfyUI's reach"
        )
    total = stuck = 0
    kind = ""
    for module in model.modules():
        size = sum(weight.nbytes for weight in module.parameters(recurse=False))
        total += size
        if size and not hasattr(module, "comfy_cast_weights"):
            stuck += size
            kind = type(module).__module__.split(".")[0]
    if stuck <= STUCK_SHARE * total:
        return None
    return (
        f"left alone: {format_bytes(stuck)} of {format_bytes(total)} are in layers ComfyUI cannot "
        f"stream (of {kind}), which would stay in RAM and fail"
    )


def _compiled(patcher: Any) -> list[str]:
    options = patcher.model_options
    patched = [type(one).__name__ for one in patcher.object_patches.values()]
    keys = {key for by_key in patcher.wrappers.values() for key in by_key}
    marks = ("torch_compile_kwargs" in options, "torch.compile" in keys)
    if not any(marks) and "OptimizedModule" not in patched:
        return []
    return [
        "compiled by torch.compile, which may compile again whenever a streamed weight moves; "
        "level none or balanced keeps its weights in place while it runs"
    ]


def _attention(patcher: Any) -> list[str]:
    override = _transformer_options(patcher).get("optimized_attention_override")
    if override is None or _is_ours(override):
        return []
    return [
        f"{_origin(override)} has chosen its attention before this node; only one choice counts, "
        f"the last one made"
    ]


def _wrapped(patcher: Any) -> list[str]:
    found = []
    wrapper = patcher.model_options.get("model_function_wrapper")
    if wrapper is not None and not _is_ours(wrapper):
        found.append(
            f"{_origin(wrapper)} wraps every step (as TeaCache and first-block caches do); it is "
            f"kept, and what it remembers on the device comes on top of a budget"
        )
    keys = {str(key) for by_key in patcher.wrappers.values() for key in by_key}
    caches = sorted(key for key in keys if "cache" in key.lower())
    if caches:
        found.append(
            f"steps are cached ({', '.join(caches)}); what is remembered on the device comes on "
            f"top of a budget"
        )
    return found


def _quantised(patcher: Any) -> list[str]:
    kinds = {base.__name__ for base in type(patcher).__mro__}
    if "GGUFModelPatcher" not in kinds:
        return []
    return [
        "a GGUF model: its weights stay quantised in memory and are unpacked call by call; caps "
        "and budgets count them quantised, FP8 storage is not for them"
    ]


def _several_devices(patcher: Any) -> list[str]:
    others = getattr(patcher, "additional_models", {}).get("multigpu", [])
    if not others:
        return []
    return [
        f"copies of it run on {len(others)} more device(s); Lowtide holds its cap on "
        f"{patcher.load_device} only"
    ]


def _packs() -> list[str]:
    """Packs that replace parts of the core, or load models that never pass this node."""
    found = []
    core = getattr(sys.modules.get("comfy.model_patcher"), "ModelPatcher", None)
    if hasattr(core, "_distorch_patched"):
        found.append(
            "ComfyUI-MultiGPU has replaced how ComfyUI loads models; its DisTorch models keep "
            "their own plan, all others are under Lowtide's caps as usual"
        )
    nodes = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    for node, pack, follows in _OWN_LOADERS:
        if node in nodes:
            found.append(f"{_pack_of(nodes[node], pack)} is installed: {follows}")
    return found


_OWN_LOADERS = (
    (
        "WanVideoModelLoader",
        "ComfyUI-WanVideoWrapper",
        "its models never pass Optimize Pipeline and move by its own block swap; what they hold "
        "counts against a budget all the same",
    ),
    (
        "RayInitializer",
        "raylight",
        "its models run in other processes, which Lowtide neither caps nor sees, but as memory "
        "held by other programs",
    ),
    (
        "XDiTUNETLoader",
        "xDiT",
        "its models run in other processes, which Lowtide neither caps nor sees, but as memory "
        "held by other programs",
    ),
)


def _pack_of(node: Any, usual: str) -> str:
    where = str(getattr(node, "RELATIVE_PYTHON_MODULE", ""))
    return where.split(".", 1)[1] if where.startswith("custom_nodes.") else usual


def _transformer_options(patcher: Any) -> dict[str, Any]:
    options = patcher.model_options.get("transformer_options")
    return options if isinstance(options, dict) else {}


def _is_ours(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith(__name__.split(".memory.")[0] + ".")


def _origin(function: Any) -> str:
    """The pack a function is of: the folder under custom_nodes, else its module."""
    module = str(getattr(function, "__module__", None) or type(function).__module__)
    for mark in ("custom_nodes/", "custom_nodes\\", "custom_nodes."):
        if mark in module:
            return module.split(mark, 1)[1].split("/")[0].split("\\")[0].split(".")[0]
    return module


def _named(kind: type) -> str:
    return f"{kind.__name__} ({_origin(kind)})"

"""Applies a configuration to clones of ComfyUI's MODEL, CLIP and VAE, and says what was done."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from ...levels import MemoryOptimizationConfig
from ...run_key import plan_name
from ...strategies.base import Applied, Skipped
from ...units import format_bytes
from . import control as controls
from . import dynamic, float8, sampling
from .attention import choose
from .chunking import chunk, held_bytes
from .clip import leaving, staying
from .compatibility import left_alone, stays
from .patchers import is_dynamic, marked, with_residency
from .residency import Residency, residency_of
from .shares import Share, check_parts, divide, leaves_when_idle, policy, residency_for
from .vae import TilingVae, VaePlan, described, tiling
from .vae_jobs import tiles

__all__ = ["Share", "check_parts", "divide"]

Entries = list[Any]

_DENOISER = "only the diffusion model is stored in FP8"
_ON_HOST = (
    "the model computes where its originals are kept, on the host, and would only take more room; "
    "keep_originals=False stores it in half the RAM"
)
_AFTER_ITS_TURN = "off the device as far as other parts need the budget, at the latest by cleanup"
_AFTER_A_RUN = {
    "always": "off the device after each run",
    "pressure": "off the device after a run that leaves memory short",
}


def to_model(config: MemoryOptimizationConfig, share: Share, model: Any, entries: Entries) -> Any:
    """A clone of the MODEL with its FP8 storage, attention and chunking, under its cap; it leaves
    the device when it has sampled.

    Raises:
        BudgetError: as ``divide``; a layer in FP8 is decoded beside its codes.
    """
    if model is None or share.model is None:
        return model
    residency = share.model
    if config.fp8_storage:
        model = _in_fp8(config, model, entries)
        residency = residency_for(config, model, "model")
    model = choose(model, config, entries)
    model = chunk(model, config, entries)
    held = held_bytes(model)
    residency = dataclasses.replace(residency, streaming=residency.streaming + held)
    return _sampled(config, residency, model, "model", entries)


def to_control_net(
    config: MemoryOptimizationConfig, share: Share, control_net: Any, entries: Entries
) -> Any:
    """A copy of the CONTROL_NET under its cap; it leaves the device when the model has sampled."""
    if control_net is None:
        return control_net
    if share.control is None:
        why = f"a {type(control_net).__name__} moves its weights itself"
        entries.append(Skipped("resident cap", "control net", why))
        return control_net
    patcher = controls.patcher_of(control_net)
    when = "after sampling"
    if share.model is None or not (share.model.leave or share.model.stays):
        when = "when a MODEL of Optimize Pipeline that leaves too has sampled with it"
    capped = _sampled(config, share.control, patcher, "control net", entries, when)
    return control_net if capped is patcher else controls.with_patcher(control_net, capped)


def _in_fp8(config: MemoryOptimizationConfig, model: Any, entries: Entries) -> Any:
    reason = left_alone(model)
    if reason is None and model.load_device.type == "cpu" and config.keep_originals:
        reason = _ON_HOST
    if reason is not None:
        entries.append(Skipped(float8.NAME, "model", reason))
        return model
    return float8.store(model, config, entries)


def to_clip(config: MemoryOptimizationConfig, share: Share, clip: Any, entries: Entries) -> Any:
    """A clone of the CLIP under its cap that leaves the device when it has encoded."""
    if clip is None or share.clip is None:
        return clip
    part = "text encoder"
    reason = stays(clip.patcher) or f"not part of level {config.level.value}"
    if stays(clip.patcher) or not leaves_when_idle(config):
        entries.append(Skipped("leave when idle", part, reason))
        clip = staying(clip)
        if share.clip.cleanup == "off" and residency_of(clip.patcher) is None:
            return clip
        clone = clip.clone()
        clone.patcher = _following(share.clip, clone.patcher, part, entries)
        return clone
    clone = leaving(clip)
    clone.patcher = _capped(config, share.clip, clone.patcher, part, entries)
    when = _AFTER_ITS_TURN if share.clip.stays else "off the device after encoding"
    entries.append(Applied("leave when idle", part, when, _unplug))
    return clone


def to_vae(config: MemoryOptimizationConfig, share: Share, vae: Any, entries: Entries) -> Any:
    """A copy of the VAE that works in tiles and leaves the device when it is done."""
    if vae is None:
        return vae
    plan = share.vae
    follows = Residency(cleanup=policy(config), plan=plan_name(config))
    if plan is None:
        reason = f"not part of level {config.level.value}"
        entries.append(Skipped("vae tiling", "vae", reason))
        entries.append(Skipped("leave when idle", "vae", reason))
        if vae.first_stage_model is None:
            return vae
        if isinstance(vae, TilingVae):  # of an earlier node of ours
            vae = tiling(vae, VaePlan(None, leave=False))
        elif follows.cleanup == "off":
            return vae
        twin = copy.copy(vae)
        twin.patcher = _following(follows, vae.patcher, "vae", entries)
        return twin
    twin = tiling(vae, plan)
    if plan.config is None:
        entries.append(Skipped("vae tiling", "vae", "switched off"))
    elif not tiles(vae):
        entries.append(Skipped("vae tiling", "vae", "it decodes no image: nothing to cut"))
    else:
        name, detail = described(twin) or ("vae tiling", "")
        entries.append(Applied(name, "vae", detail, _unplug))
    if plan.chunk is not None and tiles(vae):
        count = "one image" if plan.chunk == 1 else f"at most {plan.chunk} images"
        entries.append(Applied("vae slicing", "vae", f"{count} at a time", _unplug))
    elif plan.chunk is not None:
        entries.append(Skipped("vae slicing", "vae", "it decodes no image: nothing to cut"))
    if plan.budget is not None:
        entries += dynamic.vae_budget(twin.patcher)
    if plan.leave and stays(twin.patcher):
        entries.append(Skipped("leave when idle", "vae", str(stays(twin.patcher))))
    elif plan.leave:
        detail = _AFTER_ITS_TURN if plan.stays else "off the device after decoding or encoding"
        entries.append(Applied("leave when idle", "vae", detail, _unplug))
    else:
        twin.patcher = _following(follows, twin.patcher, "vae", entries)
    return twin


def account_for_the_rest(config: MemoryOptimizationConfig, entries: Entries) -> None:
    """Name what the configuration asks for and ComfyUI's own models don't get here."""
    wanted = (
        (
            config.compute_dtype is not None,
            "compute dtype",
            "ComfyUI's models compute in the type they were loaded for",
        ),
        (config.cpu_mode, "cpu mode", "text encoder and VAE leave the device when idle instead"),
    )
    entries += [Skipped(name, "all", why) for asked, name, why in wanted if asked]
    if config.fp8_storage:
        entries += [Skipped(float8.NAME, part, _DENOISER) for part in ("text encoder", "vae")]


def _unplug() -> None:
    """A clone is undone by not using it: the original was never touched."""


def _sampled(
    config: MemoryOptimizationConfig,
    residency: Residency,
    patcher: Any,
    part: str,
    entries: Entries,
    when: str = "after sampling",
) -> Any:
    """What is on the device while a model samples: capped, and off it afterwards."""
    clone = _capped(config, residency, patcher, part, entries)
    strategy = "leave when idle"
    if stays(patcher):
        entries.append(Skipped(strategy, part, str(stays(patcher))))
    elif not (residency.leave or residency.stays):
        entries.append(Skipped(strategy, part, f"not part of level {config.level.value}"))
    else:
        clone = marked(patcher, residency) if clone is patcher else clone
        detail = _AFTER_ITS_TURN if residency.stays else f"off the device {when}"
        entries.append(Applied(strategy, part, detail, _unplug))
    if part == "model" and clone is not patcher:
        sampling.watch(clone)
    return clone


def _following(residency: Residency, patcher: Any, part: str, entries: Entries) -> Any:
    """A clone that only follows the cleanup policy; the patcher itself where there is none.

    What an earlier node of ours set is replaced.
    """
    if residency.cleanup == "off":
        return patcher if residency_of(patcher) is None else marked(patcher, residency)
    if stays(patcher):
        entries.append(Skipped("cleanup", part, str(stays(patcher))))
        return patcher
    entries.append(Applied("cleanup", part, _AFTER_A_RUN[residency.cleanup], _unplug))
    return marked(patcher, residency)


def _free(patcher: Any) -> str | None:
    import comfy.model_management as mm

    if patcher.load_device == patcher.offload_device:
        return None
    return format_bytes(int(mm.get_free_memory(patcher.load_device)))


def _capped(
    config: MemoryOptimizationConfig,
    residency: Residency,
    patcher: Any,
    part: str,
    entries: Entries,
) -> Any:
    strategy = "resident cap"
    reason = left_alone(patcher)
    if reason is not None:
        entries.append(Skipped(strategy, part, reason))
        if config.budget_bytes is not None:
            entries.append(Skipped("budget", part, reason))
        return _following(residency, patcher, part, entries)
    if residency.cap is None and residency.budget is None:
        entries.append(Skipped(strategy, part, f"not part of level {config.level.value}"))
        return _following(residency, patcher, part, entries)
    if is_dynamic(patcher):
        entries += dynamic.outcome(patcher, residency, part, _unplug)
        return dynamic.limited(patcher, residency)
    size = int(patcher.model_size())
    if residency.budget is None:
        assert residency.cap is not None
        detail = f"{format_bytes(residency.cap)} of {format_bytes(size)} resident"
        if residency.by_free:
            detail = f"at most {detail}, less where the device has little free"
            free = _free(patcher)
            detail += "" if free is None else f" ({free} now)"
    elif part == "text encoder":
        detail = f"all of {format_bytes(size)} if a budget of {format_bytes(residency.budget)}"
        detail += " was measured to hold it, else none"
    else:
        detail = (
            f"of {format_bytes(size)} what a budget of {format_bytes(residency.budget)} leaves "
            f"beside what a step is measured to need; ComfyUI's estimate until then"
        )
    capped = with_residency(patcher, residency)
    entries.append(Applied(strategy, part, f"{detail}, the rest streamed", _unplug))
    return capped

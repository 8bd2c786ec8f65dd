"""Applies a configuration to clones of ComfyUI's MODEL, CLIP and VAE, and says what was done."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

from ...cleanup import MOMENTS
from ...errors import BudgetError, TargetError
from ...levels import MemoryOptimizationConfig, OptimizationLevel
from ...strategies.base import Applied, Skipped
from ...units import MIB, format_bytes
from . import dynamic
from .attention import choose
from .chunking import chunk, held_bytes
from .clip import leaving
from .compatibility import left_alone, stays
from .patchers import Residency, is_dynamic, marked, streaming_bytes, with_residency
from .vae import VaePlan, described, tiling
from .vae_jobs import tiles

Entries = list[Any]

RESIDENT_SHARE = {OptimizationLevel.AGGRESSIVE: 0.25, OptimizationLevel.ULTRA: 0.0}
"""Part of a model's weights that stays on the device; a level that is not named has no cap."""

_AFTER_A_RUN = {
    "always": "off the device after each run",
    "pressure": "off the device after a run that leaves memory short",
}
_TEXT_SHARE = 16
_TEXT_LEAST = 32 * MIB
_TEXT_MOST = 256 * MIB


@dataclass(frozen=True)
class Share:
    """The budget divided: each part has its turn on the device, so each may use all of it."""

    model: Residency | None
    clip: Residency | None
    vae: VaePlan | None


def divide(config: MemoryOptimizationConfig, *, model: Any, clip: Any, vae: Any) -> Share:
    """What each part may keep on the device under ``config``.

    Raises:
        TargetError: an input of the wrong kind.
        BudgetError: the budget is under the largest layer that has to be streamed.
    """
    for name, value, has in (("model", model, "model"), ("clip", clip, "patcher")):
        if value is not None and not hasattr(value, has):
            raise TargetError(f"`{name}` is a {type(value).__name__}; plug in a {name.upper()}")
    if vae is not None and not hasattr(vae, "first_stage_model"):
        raise TargetError(f"`vae` is a {type(vae).__name__}; plug in a VAE")
    idle = leaves_when_idle(config)
    return Share(
        None if model is None else _residency(config, model, "model"),
        None if clip is None else _residency(config, clip.patcher, "text encoder"),
        None
        if vae is None or not (idle or config.enable_vae_tiling or config.enable_vae_slicing)
        else VaePlan(
            config if config.enable_vae_tiling else None, idle, config.budget_bytes, _chunk(config)
        ),
    )


def leaves_when_idle(config: MemoryOptimizationConfig) -> bool:
    """Whether text encoder and VAE leave the device once their node is done."""
    return config.offload != "none" or config.budget_bytes is not None


def to_model(config: MemoryOptimizationConfig, share: Share, model: Any, entries: Entries) -> Any:
    """A clone of the MODEL with its attention and chunking, under its cap."""
    if model is None or share.model is None:
        return model
    model = choose(model, config, entries)
    model = chunk(model, config, entries)
    held = held_bytes(model)
    residency = dataclasses.replace(share.model, streaming=share.model.streaming + held)
    return _capped(config, residency, model, "model", entries)


def to_clip(config: MemoryOptimizationConfig, share: Share, clip: Any, entries: Entries) -> Any:
    """A clone of the CLIP under its cap that leaves the device when it has encoded."""
    if clip is None or share.clip is None:
        return clip
    part = "text encoder"
    reason = stays(clip.patcher) or f"not part of level {config.level.value}"
    if stays(clip.patcher) or not leaves_when_idle(config):
        entries.append(Skipped("leave when idle", part, reason))
        if share.clip.cleanup == "off":
            return clip
        clone = clip.clone()
        clone.patcher = _following(share.clip, clone.patcher, part, entries)
        return clone
    clone = leaving(clip)
    clone.patcher = _capped(config, share.clip, clone.patcher, part, entries)
    entries.append(Applied("leave when idle", part, "off the device after encoding", _unplug))
    return clone


def to_vae(config: MemoryOptimizationConfig, share: Share, vae: Any, entries: Entries) -> Any:
    """A copy of the VAE that works in tiles and leaves the device when it is done."""
    if vae is None:
        return vae
    plan = share.vae
    policy = Residency(cleanup=_policy(config))
    if plan is None:
        reason = f"not part of level {config.level.value}"
        entries.append(Skipped("vae tiling", "vae", reason))
        entries.append(Skipped("leave when idle", "vae", reason))
        if policy.cleanup == "off" or vae.first_stage_model is None:
            return vae
        twin = copy.copy(vae)
        twin.patcher = _following(policy, vae.patcher, "vae", entries)
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
        detail = "off the device after decoding or encoding"
        entries.append(Applied("leave when idle", "vae", detail, _unplug))
    else:
        twin.patcher = _following(policy, twin.patcher, "vae", entries)
    return twin


def account_for_the_rest(config: MemoryOptimizationConfig, entries: Entries) -> None:
    """Name what the configuration asks for and ComfyUI's own models don't get here."""
    wanted = (
        (config.fp8_storage, "fp8 storage", "weights of ComfyUI's models keep their type"),
        (config.cpu_mode, "cpu mode", "text encoder and VAE leave the device when idle instead"),
    )
    entries += [Skipped(name, "all", why) for asked, name, why in wanted if asked]
    usual = MemoryOptimizationConfig()
    moments = [name for name in MOMENTS if name != "on_exit"]
    changed = [name for name in moments if getattr(config, name) != getattr(usual, name)]
    if changed:
        why = "ComfyUI's models are cleaned up after a run only, by on_exit"
        entries.append(Skipped(", ".join(changed), "all", why))


def _unplug() -> None:
    """A clone is undone by not using it: the original was never touched."""


def _chunk(config: MemoryOptimizationConfig) -> int | None:
    """Images of a batch the VAE works on at once; ``None`` = as many as the core likes."""
    return (config.vae_decode_chunk_size or 1) if config.enable_vae_slicing else None


def _policy(config: MemoryOptimizationConfig) -> str:
    """When a model leaves the device after a run."""
    return config.cleanup if config.on_exit else "off"


def _following(residency: Residency, patcher: Any, part: str, entries: Entries) -> Any:
    """A clone that only follows the cleanup policy; the patcher itself where there is none."""
    if residency.cleanup == "off":
        return patcher
    if stays(patcher):
        entries.append(Skipped("cleanup", part, str(stays(patcher))))
        return patcher
    entries.append(Applied("cleanup", part, _AFTER_A_RUN[residency.cleanup], _unplug))
    return marked(patcher, residency)


def _residency(config: MemoryOptimizationConfig, patcher: Any, part: str) -> Residency:
    if left_alone(patcher) is not None:
        return Residency(cleanup=_policy(config))
    share = RESIDENT_SHARE.get(config.level)
    if share is not None and part != "model":
        share = 0.0  # it runs once a prompt: what stays resident would save no transfer
    size = int(patcher.model_size())
    cap = None if share is None else int(size * share)
    budget = config.budget_bytes
    streaming = streaming_bytes(patcher)
    if budget is not None and budget <= streaming:
        raise BudgetError(
            f"a budget of {format_bytes(budget)} cannot hold the {part}: its largest layer needs "
            f"{format_bytes(streaming)} on the device even when everything is streamed. Give at "
            f"least {format_bytes(streaming + MIB)}, and more for what it computes"
        )
    beside = 0
    if part != "model":
        beside = min(_TEXT_MOST, max(_TEXT_LEAST, size // _TEXT_SHARE))
    return Residency(cap, budget, streaming, beside, _policy(config))


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
    else:
        detail = (
            f"of {format_bytes(size)} what a budget of {format_bytes(residency.budget)} leaves "
            f"beside {format_bytes(residency.streaming)} for streaming and ComfyUI's estimate of "
            f"activations"
        )
    capped = with_residency(patcher, residency)
    entries.append(Applied(strategy, part, f"{detail}, the rest streamed", _unplug))
    return capped

"""Divides a budget, or a level's share of the weights, between the parts of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import BudgetError, TargetError
from ...levels import MemoryOptimizationConfig, OptimizationLevel
from ...run_key import plan_name
from ...units import MIB, format_bytes
from . import control as controls
from .budget import givable
from .compatibility import left_alone
from .limits import least_bytes, streaming_bytes, streams_all
from .patchers import is_dynamic
from .residency import Residency
from .vae import VaePlan

RESIDENT_SHARE = {OptimizationLevel.AGGRESSIVE: 0.25, OptimizationLevel.ULTRA: 0.0}
"""Most of a model's weights that stays on the device, less where little is free; a level that is
not named has no cap."""

_TEXT_SHARE = 16
_TEXT_LEAST = 32 * MIB
_TEXT_MOST = 256 * MIB


@dataclass(frozen=True)
class Share:
    """The budget divided: model, text encoder and VAE have their turn on the device one after the
    other, so each may use all of it. A ControlNet has its turn with the model: while they sample,
    what is left for weights is divided between them by size."""

    model: Residency | None
    clip: Residency | None
    vae: VaePlan | None
    control: Residency | None = None


def divide(
    config: MemoryOptimizationConfig, *, model: Any, clip: Any, vae: Any, control_net: Any = None
) -> Share:
    """What each part may keep on the device under ``config``.

    Raises:
        TargetError: an input of the wrong kind.
        BudgetError: the budget is under the largest layer that has to be streamed.
    """
    check_parts(model=model, clip=clip, vae=vae, control_net=control_net)
    if vae is not None and config.budget_bytes is not None:
        _check_vae(config.budget_bytes, vae)
    idle = leaves_when_idle(config)
    return Share(
        None if model is None else residency_for(config, model, "model"),
        None if clip is None else residency_for(config, clip.patcher, "text encoder"),
        None
        if vae is None or not (idle or config.enable_vae_tiling or config.enable_vae_slicing)
        else VaePlan(
            config if config.enable_vae_tiling else None,
            idle,
            config.budget_bytes,
            _chunk(config),
            plan=plan_name(config),
            stays=stays_under(config, getattr(vae, "patcher", None)),
            cleanup=policy(config),
        ),
        None
        if controls.patcher_of(control_net) is None
        else residency_for(config, controls.patcher_of(control_net), "control net"),
    )


def check_parts(*, model: Any, clip: Any, vae: Any, control_net: Any) -> None:
    """Refuse what is none of these.

    Raises:
        TargetError: names what to plug in.
    """
    for name, value, has in (("model", model, "model"), ("clip", clip, "patcher")):
        if value is not None and not hasattr(value, has):
            raise TargetError(f"`{name}` is a {type(value).__name__}; plug in a {name.upper()}")
    if vae is not None and not hasattr(vae, "first_stage_model"):
        raise TargetError(f"`vae` is a {type(vae).__name__}; plug in a VAE")
    if control_net is not None and not hasattr(control_net, "set_previous_controlnet"):
        kind = type(control_net).__name__
        raise TargetError(f"`control_net` is a {kind}; plug in a CONTROL_NET")


def leaves_when_idle(config: MemoryOptimizationConfig) -> bool:
    """Whether text encoder and VAE leave the device once their node is done."""
    return config.offload != "none" or config.budget_bytes is not None


def stays_under(config: MemoryOptimizationConfig, patcher: Any = None) -> bool:
    """Whether models stay after their turn, where the budget leaves room: see ``staying``.

    Not those that DynamicVRAM pages.
    """
    paged = patcher is not None and is_dynamic(patcher)
    return config.budget_bytes is not None and config.offload == "none" and not paged


def policy(config: MemoryOptimizationConfig) -> str:
    """When a model leaves the device after a run."""
    return config.cleanup if config.on_exit else "off"


def _chunk(config: MemoryOptimizationConfig) -> int | None:
    """Images of a batch the VAE works on at once; ``None`` = as many as the core likes."""
    if config.budget_bytes is not None and not config.enable_vae_slicing:
        return 1
    return (config.vae_decode_chunk_size or 1) if config.enable_vae_slicing else None


def residency_for(config: MemoryOptimizationConfig, patcher: Any, part: str) -> Residency:
    """What one part may keep on the device under ``config``.

    Raises:
        BudgetError: the budget is under the largest layer that has to be streamed.
    """
    if left_alone(patcher) is not None:
        return Residency(cleanup=policy(config), plan=plan_name(config))
    share = RESIDENT_SHARE.get(config.level)
    samples = part in ("model", "control net")
    if share is not None and not samples:
        share = 0.0  # it runs once a prompt: what stays resident would save no transfer
    size = int(patcher.model_size())
    cap = None if share is None else int(size * share)
    budget = config.budget_bytes
    least = least_bytes(patcher)
    if budget is not None and budget <= least:
        raise BudgetError(
            f"a budget of {format_bytes(budget)} cannot hold the {part}: its largest layer needs "
            f"{format_bytes(least)} on the device even when everything is streamed. Give at "
            f"least {givable(least + MIB)}, and more for what it computes"
        )
    beside, staying = 0, stays_under(config, patcher)
    if not samples:
        beside = min(_TEXT_MOST, max(_TEXT_LEAST, size // _TEXT_SHARE))
    return Residency(
        cap,
        budget,
        streaming_bytes(patcher),
        beside,
        policy(config),
        by_free=bool(share),
        leave=samples and leaves_when_idle(config) and not staying,
        plan=plan_name(config),
        stays=staying,
        turn="model" if samples else part,
    )


def _check_vae(budget: int, vae: Any) -> None:
    """Refuse a budget that cannot even hold the VAE's weights.

    Raises:
        BudgetError: names what it takes at least.
    """
    patcher = getattr(vae, "patcher", None)
    if patcher is None or vae.first_stage_model is None:
        return
    if is_dynamic(patcher) or left_alone(patcher) is not None:
        return
    streamed = streams_all(patcher.model) and not getattr(vae, "disable_offload", False)
    least = least_bytes(patcher) if streamed else int(patcher.model_size())
    if budget <= least:
        what = "its largest layer" if streamed else "its weights, which cannot be streamed, alone"
        raise BudgetError(
            f"a budget of {format_bytes(budget)} cannot hold the VAE: {what} take "
            f"{format_bytes(least)}. Give at least {givable(least + MIB)}, and more for what it "
            f"computes"
        )

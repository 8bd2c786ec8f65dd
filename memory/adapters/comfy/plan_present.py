"""What a loaded model would do as it is: under what Lowtide's nodes have set on it already."""

from __future__ import annotations

from typing import Any

from ...levels import MemoryOptimizationConfig
from ...planner.predict import Turn
from .float8 import ATTACHMENT as IN_FP8
from .plan_budget import capped
from .plan_subject import ComfySubject
from .plan_traces import loader_here
from .plan_vae import DECODE_WORK, ENCODE_WORK
from .residency import residency_of

ENCODING = "encoding"


def turn_as_it_is(subject: ComfySubject, what: str) -> Turn:
    """The turn of a subject's only part: ``encoding`` for a VAE's encode, anything else for the
    rest. Other models are taken to be off the device.

    Raises:
        TargetError: it can't be traced.
    """
    traces = subject.traces
    models = traces.models
    if models.vae is not None:
        work = ENCODE_WORK if what == ENCODING else DECODE_WORK
        return traces.vae_turn(work, _vae_config(models.vae))
    if models.model is not None:
        return _capped(traces.model_turn(_config(models.model)), models.model)
    return _capped_encoder(traces, models.clip)


def _config(patcher: Any) -> MemoryOptimizationConfig:
    residency = residency_of(patcher)
    stored = IN_FP8 in patcher.attachments or hasattr(patcher.model, IN_FP8)
    return MemoryOptimizationConfig(
        offload="component",
        fp8_storage=stored,
        budget_bytes=None if residency is None else residency.budget,
    )


def _vae_config(vae: Any) -> MemoryOptimizationConfig:
    plan = getattr(vae, "lowtide_plan", None)
    if plan is None:
        return MemoryOptimizationConfig(offload="component")
    config = plan.config or MemoryOptimizationConfig(offload="component")
    found: MemoryOptimizationConfig = config.replace(budget_bytes=plan.budget)
    return found


def _capped(turn: Turn, patcher: Any) -> Turn:
    residency = residency_of(patcher)
    if residency is None or residency.cap is None or residency.budget is not None:
        return turn
    return capped(turn, residency.cap, loader_here())


def _capped_encoder(traces: Any, clip: Any) -> Turn:
    turn: Turn = traces.clip_turn(_config(clip.patcher))
    found = _capped(turn, clip.patcher)
    if found is turn:
        return turn
    return traces.following(found)

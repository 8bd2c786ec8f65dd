"""What the fit check asks of a running ComfyUI: sizes, the device, which models can be traced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ... import profiles
from ...device import snapshot
from ...errors import ConfigError, LowtideError, TargetError
from ...levels import MemoryOptimizationConfig
from ...planner.planner import Limits
from ...planner.work import Work
from .. import comfy
from .plan_loaded import loaded_subject
from .plan_subject import ComfySubject


def costs() -> dict[str, Any]:
    """Rates, workspaces and context of ComfyUI's device, as ``predict`` takes them."""
    name = str(snapshot(comfy.device()).name)
    profile = profiles.known(name, str(torch.__version__))
    return {
        "rates": profile,
        "workspace_factor": profile.workspace_factor,
        "context_bytes": profile.context_bytes,
    }


def available() -> int | None:
    """Bytes of the device this process could have; ``None`` where nobody knows."""
    from .overlay import fit

    return fit.available()


def work_of(work: Work, latent: Any, parts: Mapping[str, Any]) -> Work:
    """``work`` with the sizes of a latent, where one is plugged in.

    Raises:
        ConfigError: the latent holds no samples.
    """
    if latent is None:
        return work
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if not isinstance(samples, torch.Tensor) or samples.ndim < 4:
        raise ConfigError("`latent` holds no images; plug in an empty latent, or one of VAE Encode")
    factor = _factor(parts)
    height, width = (int(length) * factor for length in samples.shape[-2:])
    frames = int(samples.shape[2]) if samples.ndim == 5 else 1
    return replace(
        work,
        width=width,
        height=height,
        batch=int(samples.shape[0]),
        frames=1 if frames < 2 else 4 * frames - 3,
    )


def known_parts(work: Work, parts: Mapping[str, Any]) -> tuple[ComfySubject | None, list[str]]:
    """The models that can be traced, and why the others cannot.

    Raises:
        TargetError: nothing is plugged in, or something else than a model.
    """
    subject = loaded_subject(work, **parts, workspace_factor=costs()["workspace_factor"])
    plain = MemoryOptimizationConfig()
    try:
        subject.turns(plain)
        return subject, []
    except LowtideError:
        pass
    kept: dict[str, Any] = {}
    unknown = []
    for name, part in parts.items():
        if part is None:
            continue
        try:
            loaded_subject(work, **{name: part}).turns(plain)
            kept[name] = part
        except LowtideError as error:
            unknown.append(str(error))
    if not kept:
        return None, unknown
    return loaded_subject(work, **kept, workspace_factor=costs()["workspace_factor"]), unknown


def smallest_budget(subject: ComfySubject, budget: int, spent: dict[str, Any]) -> int | None:
    """Bytes of the least budget with which a plan can be made; ``None`` where none is known."""
    try:
        return subject.within(Limits(budget), subject.traces.work, spent).smallest_budget
    except TargetError:
        return None


def largest_batch(
    subject: ComfySubject,
    config: MemoryOptimizationConfig,
    budget: int | None,
    limit: int,
    spent: dict[str, Any],
) -> int | None:
    """Images at once within a budget, or else within ``limit`` bytes of the device; ``None`` where
    no diffusion model is plugged in, or it cannot be said."""
    from .plan_batches import within_budget, within_device

    if subject.traces.models.model is None:
        return None
    try:
        if budget is not None:
            return within_budget(subject.traces, config, Limits(budget, margin=0.0))
        return within_device(subject.traces, config, limit, spent)
    except LowtideError:
        return None


def _factor(parts: Mapping[str, Any]) -> int:
    """Pixels of an edge for one latent."""
    if parts.get("vae") is not None:
        return int(parts["vae"].spacial_compression_decode())
    if parts.get("model") is not None:
        form = parts["model"].model.latent_format
        return int(getattr(form, "spacial_downscale_ratio", 8) or 8)
    return 8

"""Which strategies a configuration means for which component of a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..device import snapshot
from ..errors import ConfigError, TargetError
from ..foresight import Chosen
from ..levels import MemoryOptimizationConfig
from ..planner.planner import MARGIN
from ..planner.work import Work
from ..stages import DECODING, DENOISING, TEXT_ENCODING, stage_of
from ..strategies import (
    attention,
    cleanup_moments,
    component_offload,
    cpu_mode,
    exact_tiling,
    forward_chunking,
    fp8_layerwise,
    group_offload,
    placement,
    sequential_offload,
    turns,
    vae_slicing,
    vae_tiling,
)
from ..strategies.base import Applied, Outcome, Skipped
from .diffusers import (
    declares,
    existing_offload,
    modules_of,
    remove_offload,
    require_pipeline,
    restore_offload,
)
from .pipeline_choice import choose, ran_out

if TYPE_CHECKING:
    from .pipeline_plan import PipelinePlan

__all__ = ["apply_all", "modules_of", "ran_out", "require_pipeline", "settle"]

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float8_e4m3fn": torch.float8_e4m3fn,
}
_NAMES = {
    "component": component_offload.NAME,
    "sequential": sequential_offload.NAME,
    "group": group_offload.NAME,
    "planned": turns.NAME,
}


def settle(
    config: MemoryOptimizationConfig,
    pipe: Any,
    device: torch.device,
    work: Work | None = None,
    *,
    in_parts: bool = False,
) -> Chosen:
    """The configuration this pipeline gets on this device for a run, and why.

    Args:
        work: the run; ``None`` = one image of the pipeline's default size.
        in_parts: whether a batch that does not fit may be made in parts.

    Raises:
        ConfigError, BudgetError, TargetError: as ``MemoryOptimizer.optimize_pipeline``.
    """
    parts = modules_of(pipe)
    if not parts:
        raise TargetError(f"this {type(pipe).__name__} has no component with weights loaded")
    found = choose(config, pipe, parts, device, work, in_parts=in_parts)
    chosen = found.config
    for vae in _vaes(parts).values():
        chosen.validate(
            device_bytes=snapshot(device).total, vae_factor=vae_tiling.spatial_factor(vae)
        )
    if declares(pipe, "vae") and getattr(pipe, "vae", None) is None and _wants_vae(chosen):
        raise TargetError(
            f"this {type(pipe).__name__} has no VAE loaded, and level {chosen.level.value} works "
            "on it; load one, or set enable_vae_tiling=False and enable_vae_slicing=False"
        )
    return found


def apply_all(
    config: MemoryOptimizationConfig,
    pipe: Any,
    device: torch.device,
    plan: PipelinePlan | None = None,
) -> Iterator[Outcome]:
    """Apply one strategy after the other; the caller undoes what was yielded if a later one fails.

    A strategy that raises has undone its own part.
    """
    yield from _replace_existing(pipe)
    parts = modules_of(pipe)
    denoisers = _of_stage(parts, DENOISING)
    if config.fp8_storage and device.type == "mps":
        yield Skipped(fp8_layerwise.NAME, "pipeline", "Metal has no float8 type: weights stay")
    elif config.fp8_storage:
        chosen = parts if plan is None or plan.turns is None else {n: parts[n] for n in plan.fp8}
        yield from _fp8(config, chosen)
        if not config.keep_originals:
            yield Skipped("keep_originals=False", "pipeline", "for ComfyUI's own models only")
    if config.forward_chunk_size is not None:
        chunking = forward_chunking.ForwardChunking(config.forward_chunk_size)
        yield from _each(
            forward_chunking.NAME,
            denoisers,
            "denoiser",
            lambda part, name: forward_chunking.apply(chunking, part, name),
        )
    sliced_by_hand = config.attention_slice_size != "auto"
    if config.attention != "auto" or config.offload != "none" or sliced_by_hand:
        kernel = attention.Attention(config.attention, device, config.attention_slice_size)
        yield from _each(
            attention.NAME,
            denoisers,
            "denoiser",
            lambda part, name: attention.apply(kernel, part, name),
        )
    yield from _vae(config, _vaes(parts))
    yield from _offload(config, pipe, parts, device, plan)
    if config.cleanup != "off" and device.type != "cpu":
        yield from cleanup_moments.apply(cleanup_moments.CleanupMoments(config, device), pipe)


def _replace_existing(pipe: Any) -> Iterator[Outcome]:
    existing = existing_offload(pipe)
    if existing is None:
        return
    remove_offload(pipe)
    yield Applied(
        "existing offload",
        "pipeline",
        f"{existing.kind} offload to {existing.device} was in force and is replaced; "
        "the undo enables it again",
        lambda: restore_offload(pipe, existing),
    )


def _fp8(config: MemoryOptimizationConfig, parts: dict[str, torch.nn.Module]) -> Iterator[Outcome]:
    compute = None if config.compute_dtype is None else _DTYPES[config.compute_dtype]
    casting = fp8_layerwise.Fp8Layerwise(_DTYPES[config.storage_dtype], compute)
    yield from _each(
        fp8_layerwise.NAME,
        _of_stage(parts, DENOISING),
        "denoiser",
        lambda part, name: fp8_layerwise.apply(casting, part, name),
    )
    if config.cpu_mode:
        return
    for name, part in _of_stage(parts, TEXT_ENCODING).items():
        if "text_encoder" in name:
            yield fp8_layerwise.apply(casting, part, name, encoder=True)


def _vae(config: MemoryOptimizationConfig, vaes: dict[str, torch.nn.Module]) -> Iterator[Outcome]:
    if config.enable_vae_tiling:
        yield from _each(vae_tiling.NAME, vaes, "VAE", lambda part, name: _tile(config, part, name))
    if config.enable_vae_slicing:
        chunk = config.vae_decode_chunk_size
        slicing = vae_slicing.VaeSlicing(chunk or 1, frames=chunk is not None)
        yield from _each(
            vae_slicing.NAME, vaes, "VAE", lambda part, name: vae_slicing.apply(slicing, part, name)
        )


def _tile(config: MemoryOptimizationConfig, vae: torch.nn.Module, name: str) -> Outcome:
    if exact_tiling.wanted(config):
        limit = config.budget_bytes
        if limit is not None and config.offload == "planned":
            limit = int(limit / (1 + MARGIN))
        exactly = exact_tiling.ExactTiling(config.tile_for, limit)
        outcome = exact_tiling.apply(exactly, vae, name)
        if isinstance(outcome, Applied):
            if config.vae_tile_overlap != 0.25:
                unused = "`vae_tile_overlap` is unused: set vae_tile_mode='blended' for it"
                return replace(outcome, detail=f"{outcome.detail}; {unused}")
            return outcome
        if config.vae_tile_mode == "exact":
            raise ConfigError(
                f"`vae_tile_mode` = 'exact', but {type(vae).__name__} cannot be tiled exactly: "
                f"{outcome.reason}; set vae_tile_mode='auto' to blend tiles there"
            )
    tiling = vae_tiling.VaeTiling(config.tile_for, config.vae_tile_overlap)
    return vae_tiling.apply(tiling, vae, name)


def _offload(
    config: MemoryOptimizationConfig,
    pipe: Any,
    parts: dict[str, torch.nn.Module],
    device: torch.device,
    plan: PipelinePlan | None,
) -> Iterator[Outcome]:
    if device.type == "cpu":
        if config.offload != "none":
            reason = "no accelerator: the weights are in host memory already"
            yield Skipped(_NAMES[config.offload], "pipeline", reason)
        yield from placement.apply(placement.Placement(torch.device("cpu")), pipe)
        return
    only: tuple[str, ...] | None = None
    offload = config.offload
    if config.cpu_mode:
        only = tuple(_of_stage(parts, DENOISING))
        for name, part in parts.items():
            if name not in only:
                yield cpu_mode.apply(cpu_mode.CpuMode(device), part, name)
        if offload == "component":
            offload = "none"
            reason = "in CPU mode the denoiser has nobody to take turns with: it stays"
            yield Skipped(component_offload.NAME, "pipeline", reason)
    if offload == "none":
        yield from placement.apply(placement.Placement(device, only), pipe)
    elif offload == "planned" and plan is not None:
        yield from turns.apply(turns.Turns(device, plan.shares, only), pipe)
    elif offload == "component":
        yield from component_offload.apply(component_offload.ComponentOffload(device), pipe)
    elif offload == "sequential":
        yield from sequential_offload.apply(
            sequential_offload.SequentialOffload(device, only), pipe
        )
    else:
        groups = group_offload.GroupOffload(
            device,
            config.group_offload_type,
            config.group_blocks,
            config.use_stream,
            config.record_stream,
            config.low_cpu_mem,
            only,
        )
        yield from group_offload.apply(groups, pipe)


def _each(
    strategy: str,
    parts: dict[str, torch.nn.Module],
    what: str,
    apply: Callable[[torch.nn.Module, str], Outcome],
) -> Iterable[Outcome]:
    if not parts:
        yield Skipped(strategy, what, f"this pipeline has no {what}")
    for name, part in parts.items():
        yield apply(part, name)


def _of_stage(parts: dict[str, torch.nn.Module], stage: str) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in parts.items() if stage_of(name) == stage}


def _vaes(parts: dict[str, torch.nn.Module]) -> dict[str, torch.nn.Module]:
    return {n: part for n, part in _of_stage(parts, DECODING).items() if hasattr(part, "decode")}


def _wants_vae(config: MemoryOptimizationConfig) -> bool:
    return config.enable_vae_tiling or config.enable_vae_slicing

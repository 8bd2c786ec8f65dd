"""What a configuration means for a component's weights: the placement Lowtide's hooks give them.

Two hosts place weights: diffusers' own offload hooks on pipelines, and ComfyUI's loader, which
streams the leaves that are not resident and keeps the largest ones.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import ConfigError
from ..levels import MemoryOptimizationConfig, OptimizationLevel
from .loader import Loader, kept
from .placement import BLOCK, DELICATE, ENCODER_DELICATE, LEAF, PARENT, Placement, layout
from .predict import DECODE, DENOISE, ENCODE
from .trace import Trace

DIFFUSERS, COMFYUI = "diffusers", "comfyui"
ENGINES = (DIFFUSERS, COMFYUI)
NOTHING: frozenset[int] = frozenset()
DECODED = 1 << 19
"""Values that Lowtide's FP8 layers decode at a time; as ``float8`` has it."""
RESIDENT_SHARE = {OptimizationLevel.AGGRESSIVE: 0.25, OptimizationLevel.ULTRA: 0.0}
"""Of a ComfyUI denoiser's weights, the most that stays on the device; as ``shares`` has it."""


def placement_for(
    config: MemoryOptimizationConfig,
    engine: str,
    stage: str,
    trace: Trace,
    *,
    skip: tuple[str, ...] = (),
    coded: frozenset[int] | None = None,
    loader: Loader | None = None,
) -> Placement:
    """Where the weights of a component of ``stage`` lie under ``config``.

    Args:
        skip: patterns of names the model's authors keep in full precision.
        coded: of ComfyUI's models, as ``Placement`` has it.
        loader: ComfyUI's.

    Raises:
        ConfigError: no such engine.
    """
    if engine == DIFFUSERS:
        return _by_hooks(config, stage, skip)
    if engine == COMFYUI:
        return _by_loader(config, stage, trace, coded, loader or Loader())
    raise ConfigError(f"no engine is called {engine!r}; choose {' or '.join(ENGINES)}")


def _by_hooks(config: MemoryOptimizationConfig, stage: str, skip: tuple[str, ...]) -> Placement:
    encoder = stage == ENCODE
    fp8 = config.fp8_storage and stage != DECODE
    patterns = (*(ENCODER_DELICATE if encoder else DELICATE), *skip)
    if config.offload == "none":
        return Placement(
            fp8=fp8, keeps_originals=fp8, skip=patterns, linear_only=encoder, stays=True
        )
    if config.offload == "component":
        return Placement(fp8=fp8, keeps_originals=fp8, skip=patterns, linear_only=encoder)
    if config.offload == "sequential":
        return Placement(
            NOTHING, LEAF, fp8=fp8, keeps_originals=fp8, skip=patterns, linear_only=encoder
        )
    streams = config.use_stream is not False
    by_block = config.group_offload_type == "block_level" and stage != DECODE
    return Placement(
        NOTHING,
        BLOCK if by_block else PARENT,
        fp8=fp8,
        keeps_originals=fp8,
        skip=patterns,
        linear_only=encoder,
        ahead=1 if streams else 0,
        pinned=streams and not config.low_cpu_mem,
    )


def _by_loader(
    config: MemoryOptimizationConfig,
    stage: str,
    trace: Trace,
    coded: frozenset[int] | None,
    loader: Loader,
) -> Placement:
    share = RESIDENT_SHARE.get(config.level)
    if share is not None and stage != DENOISE:
        share = None if stage == DECODE else 0.0
    fp8 = config.fp8_storage and stage == DENOISE
    every = Placement(
        fp8=fp8,
        keeps_codes=fp8,
        drops_codes=fp8 and not loader.holds,
        decoding=DECODED if fp8 else 0,
        coded=coded,
        keeps_originals=fp8 and config.keep_originals,
        ahead=1 if loader.streams else 0,
        buffers=loader.streams,
        largest_first=True,
        stays=config.offload == "none" and config.budget_bytes is None,
    )
    if share is None:
        return every
    return under_cap(trace, every, int(layout(trace, every).resident_bytes * share), loader)


def under_cap(trace: Trace, placement: Placement, cap: int, loader: Loader) -> Placement:
    """``placement`` with at most ``cap`` bytes of weights resident, as ComfyUI's loader chooses."""
    stored = layout(trace, placement).stored
    resident = kept(trace, stored, cap, loader)
    if len(resident) == len(stored):
        return placement
    return replace(placement, resident=resident, pinned=bool(loader.streams))

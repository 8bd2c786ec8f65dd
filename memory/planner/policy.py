"""What a configuration means for a component's weights: the placement Lowtide's hooks give them.

Two hosts place weights: diffusers' own offload hooks on pipelines, and ComfyUI's loader, which
streams the leaves that are not resident and keeps the largest ones.
"""

from __future__ import annotations

from ..errors import ConfigError
from ..levels import MemoryOptimizationConfig, OptimizationLevel
from .placement import BLOCK, DELICATE, ENCODER_DELICATE, LEAF, PARENT, Placement
from .predict import DECODE, DENOISE, ENCODE
from .trace import Trace

DIFFUSERS, COMFYUI = "diffusers", "comfyui"
ENGINES = (DIFFUSERS, COMFYUI)
NOTHING: frozenset[int] = frozenset()
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
    buffers: int = 0,
) -> Placement:
    """Where the weights of a component of ``stage`` lie under ``config``.

    Args:
        skip: patterns of names the model's authors keep in full precision.
        coded, buffers: of ComfyUI's loader, as ``Placement`` has them.

    Raises:
        ConfigError: no such engine.
    """
    if engine == DIFFUSERS:
        return _by_hooks(config, stage, skip)
    if engine == COMFYUI:
        return _by_loader(config, stage, trace, coded, buffers)
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
    buffers: int,
) -> Placement:
    stays = config.offload == "none" and config.budget_bytes is None
    share = RESIDENT_SHARE.get(config.level)
    if share is not None and stage != DENOISE:
        share = None if stage == DECODE else 0.0
    resident = None if share is None else largest_first(trace, int(trace.weight_bytes * share))
    fp8 = config.fp8_storage and stage == DENOISE
    return Placement(
        resident,
        LEAF,
        fp8=fp8,
        keeps_codes=fp8,
        coded=coded,
        keeps_originals=fp8 and config.keep_originals,
        ahead=1 if buffers else 0,
        pinned=bool(buffers) and resident is not None,
        buffers=buffers,
        stays=stays,
    )


def largest_first(trace: Trace, most: int) -> frozenset[int]:
    """Weights of the largest leaves whose bytes together are at most ``most``."""
    leaves: dict[int, list[int]] = {}
    for index, weight in enumerate(trace.weights):
        leaves.setdefault(weight.owner, []).append(index)
    sizes = {
        owner: sum(trace.weights[index].nbytes for index in weights)
        for owner, weights in leaves.items()
    }
    found: set[int] = set()
    used = 0
    for owner in sorted(sizes, key=lambda owner: -sizes[owner]):
        if used + sizes[owner] <= most:
            used += sizes[owner]
            found.update(leaves[owner])
    return frozenset(found)

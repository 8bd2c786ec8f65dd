"""The configurations a level chosen by need may come to: the ladder of levels, and smaller tiles.

No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator

from .errors import ConfigError
from .levels import CHOSEN_FOR_YOU, MemoryOptimizationConfig, OptimizationLevel
from .planner.ladder import LADDER, TILES
from .units import format_bytes

__all__ = ["LADDER", "at_level", "levels_from", "same_effect", "smaller_tiles"]

_KEPT = (
    "cleanup", "after_load", "after_lora", "after_step", "after_unload", "on_exit", "cleanup_host",
)  # fmt: skip


def levels_from(config: MemoryOptimizationConfig) -> Iterator[MemoryOptimizationConfig]:
    """``config`` at each level it may be given, the gentlest first.

    A level asked for by name is never weakened; AUTO and FASTEST begin at NONE.

    Raises:
        ConfigError: a stronger level excludes a setting made by hand.
    """
    first = 0 if config.requested_level in CHOSEN_FOR_YOU else LADDER.index(config.level)
    for level in LADDER[first:]:
        try:
            yield config if level is config.level else at_level(config, level)
        except ConfigError:
            if LADDER.index(level) > LADDER.index(config.level):
                raise
            # else too gentle for what was set by hand


def smaller_tiles(
    config: MemoryOptimizationConfig, height: int, width: int
) -> Iterator[MemoryOptimizationConfig]:
    """``config`` with smaller and smaller tiles; none where their size was set by hand.

    Args:
        height, width: of the image, in pixels.
    """
    if config.vae_tile_size is not None:
        return
    edge = config.tile_for(height, width) if config.enable_vae_tiling else max(height, width)
    for tile in TILES:
        if tile < edge:
            yield config.replace(enable_vae_tiling=True, vae_tile_size=tile)


def same_effect(one: MemoryOptimizationConfig, other: MemoryOptimizationConfig) -> bool:
    """Whether two configurations differ in nothing but who asked for them, and why."""
    labels = {"requested_level": other.requested_level, "reason": other.reason}
    return one.replace(**labels).to_dict() == other.to_dict()


def at_level(
    config: MemoryOptimizationConfig, level: OptimizationLevel
) -> MemoryOptimizationConfig:
    """``config`` moved to another level, with what was set by hand on top.

    Raises:
        ConfigError: the level excludes a setting made by hand.
    """
    preset = MemoryOptimizationConfig.from_level(config.level).to_dict()
    ours = config.to_dict()
    by_hand = {
        name: value
        for name, value in ours.items()
        if name not in ("level", "requested_level", "reason", "cpu_mode", *_KEPT)
        and value != preset[name]
    }
    kept = {name: ours[name] for name in _KEPT}
    if config.budget_bytes is None:
        reason = f"{level.value} by what is free"
    else:
        reason = f"{level.value} by the budget of {format_bytes(config.budget_bytes)}"
    try:
        return MemoryOptimizationConfig.from_level(
            level,
            **{**kept, **by_hand, "requested_level": config.requested_level, "reason": reason},
        )
    except ConfigError as error:
        raise ConfigError(
            f"what there is to use needs level {level.value}, which excludes a setting made by "
            f"hand: {error}"
        ) from error

"""Single settings on top of a level: what the settings node's widgets stand for.

``level``, and 0 for numbers, leave a setting as the configuration has it.
"""

from __future__ import annotations

from typing import Any

from .errors import ConfigError, TargetError
from .levels import MemoryOptimizationConfig
from .settings import check_known

AS_LEVEL = "level"
SWITCH = (AS_LEVEL, "on", "off")
CLEANUPS = (
    "after_load", "after_lora", "after_step", "after_unload", "on_exit", "cleanup_host",
)  # fmt: skip


def check_config(config: Any) -> MemoryOptimizationConfig:
    """The configuration itself.

    Raises:
        TargetError: something else was plugged in.
    """
    if isinstance(config, MemoryOptimizationConfig):
        return config
    raise TargetError(
        f"`config` is a {type(config).__name__}; plug in the config output of Lowtide Memory "
        f"Level Selector"
    )


def adjust(
    config: Any,
    *,
    fp8_storage: str = AS_LEVEL,
    keep_originals: str = AS_LEVEL,
    attention: str = AS_LEVEL,
    attention_slice_size: int = 0,
    forward_chunk_size: int = 0,
    vae_tiling: str = AS_LEVEL,
    vae_tile_mode: str = AS_LEVEL,
    vae_tile_size: int = 0,
    vae_decode_chunk_size: int = 0,
    history: str = AS_LEVEL,
    step_peaks: str = AS_LEVEL,
    **cleanups: str,
) -> tuple[MemoryOptimizationConfig, str]:
    """A copy of ``config`` with those settings, and what changed, as text.

    Args:
        fp8_storage, keep_originals, vae_tiling, history, step_peaks: ``level``, ``on`` or ``off``.
        attention, vae_tile_mode: ``level``, or what the configuration's field takes.
        attention_slice_size: heads at once.
        forward_chunk_size: tokens at once.
        vae_tile_size: edge in pixels.
        vae_decode_chunk_size: latents at once; also switches the decoding in parts on.
        cleanups: the switches of cleanup, such as ``after_step``; as ``fp8_storage``.

    Raises:
        TargetError: ``config`` is no configuration.
        ConfigError: a value out of range, or settings that exclude each other.
    """
    before = check_config(config)
    asked: dict[str, Any] = {
        "fp8_storage": _switch("fp8_storage", fp8_storage),
        "keep_originals": _switch("keep_originals", keep_originals),
        "attention": None if attention == AS_LEVEL else attention,
        "attention_slice_size": _number("attention_slice_size", attention_slice_size),
        "forward_chunk_size": _number("forward_chunk_size", forward_chunk_size),
        "enable_vae_tiling": _switch("vae_tiling", vae_tiling),
        "vae_tile_mode": None if vae_tile_mode == AS_LEVEL else vae_tile_mode,
        "vae_tile_size": _number("vae_tile_size", vae_tile_size),
        "vae_decode_chunk_size": _number("vae_decode_chunk_size", vae_decode_chunk_size),
        "history": _switch("history", history),
        "step_peaks": _switch("step_peaks", step_peaks),
    }
    for name, value in cleanups.items():
        check_known(name, CLEANUPS)
        asked[name] = _switch(name, value)
    if asked["vae_decode_chunk_size"] is not None:
        asked["enable_vae_slicing"] = True
    changes = {name: value for name, value in asked.items() if value is not None}
    after = before.replace(**changes)
    return after, _describe(before, after, list(changes))


def _switch(name: str, value: str) -> bool | None:
    if value not in SWITCH:
        raise ConfigError(f"`{name}` is {value!r}; it takes one of: {', '.join(SWITCH)}")
    return None if value == AS_LEVEL else value == "on"


def _number(name: str, value: int) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(
            f"`{name}` is {value!r}; it takes a whole number, 1 or more, or 0 to leave it as "
            f"the level has it"
        )
    return value or None


def _describe(
    before: MemoryOptimizationConfig, after: MemoryOptimizationConfig, names: list[str]
) -> str:
    lines = [
        f"{name.removeprefix('enable_').replace('_', ' ')}: "
        f"{_said(getattr(after, name))} (was {_said(getattr(before, name))})"
        for name in names
        if getattr(before, name) != getattr(after, name)
    ]
    return "\n".join([f"Level {after.level.value}, {'with:' if lines else 'as it is'}", *lines])


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not set" if value is None else str(value)

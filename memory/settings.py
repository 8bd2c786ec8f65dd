"""What each field of a configuration may hold, and which fields exclude each other.

Apart from ``levels.py`` so that the list of settings and the list of rules can each be read in
one go. The checks raise; they never correct a value.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .errors import BudgetError, ConfigError, UnknownSettingError
from .units import format_bytes

if TYPE_CHECKING:
    from .levels import MemoryOptimizationConfig

_Check = Callable[[str, Any], None]

ATTENTION_KINDS = ("auto", "pytorch", "xformers", "sub-quadratic", "split", "sliced")
_OTHER_NAMES = {("attention", "sdpa"): "pytorch"}
"""Values that mean another one; a configuration holds the other."""


def _one_of(*choices: str | None) -> _Check:
    def check(name: str, value: Any) -> None:
        if value not in choices or isinstance(value, bool):
            listed = ", ".join(repr(choice) for choice in choices)
            raise ConfigError(f"`{name}` is {value!r}; it takes one of: {listed}")

    return check


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"`{name}` is {value!r}; it takes True or False")


def _flag_or_none(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"`{name}` is {value!r}; it takes True, False or None")


def _count(minimum: int, *, optional: bool = False, unit: str = "") -> _Check:
    def check(name: str, value: Any) -> None:
        if optional and value is None:
            return
        # A bool is an int to Python; `vae_decode_chunk_size=True` is a mistake all the same.
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            tail = ", or None" if optional else ""
            raise ConfigError(
                f"`{name}` is {value!r}; it takes a whole number{unit}, {minimum} or more{tail}"
            )

    return check


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"`{name}` is {value!r}; it takes a text")


def _anything(name: str, value: Any) -> None:
    """Levels are parsed before they get here."""


def _tile(name: str, value: Any) -> None:
    _count(64, optional=True, unit=" of pixels")(name, value)
    if value is not None and value % 8:
        raise ConfigError(
            f"`{name}` is {value} pixels; tiles are cut along latents: give a multiple of 8, "
            f"for example {value // 8 * 8}"
        )


def _overlap(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 0.5:
        raise ConfigError(f"`{name}` is {value!r}; it takes a part of the tile, from 0 to 0.5")


def _slice_size(name: str, value: Any) -> None:
    if value in ("auto", "max"):
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"`{name}` is {value!r}; it takes 'auto', 'max' or a number of heads, 1 or more"
        )


_CHECKS: dict[str, _Check] = {
    "level": _anything,
    "requested_level": _anything,
    "reason": _text,
    "offload": _one_of("none", "component", "sequential", "group", "planned"),
    "group_offload_type": _one_of("leaf_level", "block_level"),
    "group_blocks": _count(1),
    "use_stream": _flag_or_none,
    "record_stream": _flag,
    "low_cpu_mem": _flag,
    "fp8_storage": _flag,
    "storage_dtype": _one_of("float8_e4m3fn"),
    "keep_originals": _flag,
    "compute_dtype": _one_of(None, "bfloat16", "float16", "float32"),
    "enable_vae_tiling": _flag,
    "vae_tile_mode": _one_of("auto", "exact", "blended"),
    "vae_tile_size": _tile,
    "vae_tile_overlap": _overlap,
    "enable_vae_slicing": _flag,
    "vae_decode_chunk_size": _count(1, optional=True, unit=" of latents"),
    "attention": _one_of(*ATTENTION_KINDS),
    "attention_slice_size": _slice_size,
    "forward_chunk_size": _count(1, optional=True, unit=" of tokens"),
    "cleanup": _one_of("off", "pressure", "always"),
    "after_load": _flag,
    "after_lora": _flag,
    "after_step": _flag,
    "after_unload": _flag,
    "on_exit": _flag,
    "cleanup_host": _flag,
    "history": _flag,
    "step_peaks": _flag,
    "budget_bytes": _count(1, optional=True, unit=" of bytes"),
    "cpu_mode": _flag,
}


def check_known(name: str, names: Iterable[str]) -> None:
    """Raise UnknownSettingError, naming the nearest setting, unless ``name`` is one."""
    known = tuple(names)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    raise UnknownSettingError(f"there is no setting {name!r}; {hint}")


def canonical(name: str, value: Any) -> Any:
    """The value by the name it is kept under; any other value as it is."""
    return _OTHER_NAMES.get((name, value), value) if isinstance(value, str) else value


def check_field(name: str, value: Any) -> None:
    """Raise ConfigError if ``value`` is of the wrong type or out of range for ``name``."""
    _CHECKS[name](name, value)


def check_combinations(
    config: MemoryOptimizationConfig, *, device_bytes: int | None, vae_factor: int | None
) -> None:
    """Raise for settings that exclude each other; see MemoryOptimizationConfig.validate."""
    for rule in (_group, _planned, _streams, _fp8, _vae, _attention, _cleanup):
        rule(config)
    _tile_against_factor(config, vae_factor)
    _budget_against_device(config, device_bytes)


def _group(config: MemoryOptimizationConfig) -> None:
    given = {
        "group_offload_type": config.group_offload_type != "leaf_level",
        "group_blocks": config.group_blocks != 1,
        "use_stream": config.use_stream is True,
        "record_stream": config.record_stream,
        "low_cpu_mem": config.low_cpu_mem,
    }
    for name, is_set in given.items():
        if is_set and config.offload != "group":
            raise ConfigError(
                f"`{name}` = {getattr(config, name)!r} needs offload='group', but `offload` is "
                f"{config.offload!r}; set offload='group' or leave `{name}` at its default"
            )
    if config.group_blocks != 1 and config.group_offload_type == "leaf_level":
        raise ConfigError(
            f"`group_blocks` = {config.group_blocks} needs `group_offload_type` = 'block_level', "
            "not 'leaf_level'; set block_level, or group_blocks=1"
        )
    if config.group_blocks != 1 and config.use_stream is True:
        raise ConfigError(
            f"`group_blocks` = {config.group_blocks} and `use_stream` = True exclude each other: "
            "with streams one block is prefetched at a time; set group_blocks=1 or use_stream=False"
        )


def _planned(config: MemoryOptimizationConfig) -> None:
    if config.offload == "planned" and config.budget_bytes is None:
        raise ConfigError(
            "`offload` = 'planned' is what a budget chooses for a diffusers pipeline; set "
            "`budget_bytes`, or another `offload`"
        )


def _streams(config: MemoryOptimizationConfig) -> None:
    if config.use_stream is not False:
        return
    for name in ("record_stream", "low_cpu_mem"):
        if getattr(config, name):
            raise ConfigError(
                f"`{name}` = True acts on a stream's transfers, but `use_stream` is False; "
                f"set use_stream=True (or None) or {name}=False"
            )


def _fp8(config: MemoryOptimizationConfig) -> None:
    if config.compute_dtype is not None and not config.fp8_storage:
        raise ConfigError(
            f"`compute_dtype` = {config.compute_dtype!r} is the type FP8 weights are computed in, "
            "but `fp8_storage` is False; set fp8_storage=True or compute_dtype=None"
        )
    if not config.keep_originals and not config.fp8_storage:
        raise ConfigError(
            "`keep_originals` = False is about the weights FP8 stands for, but `fp8_storage` is "
            "False; set fp8_storage=True or keep_originals=True"
        )


def _vae(config: MemoryOptimizationConfig) -> None:
    if not config.enable_vae_tiling:
        for name, default in (
            ("vae_tile_mode", "auto"),
            ("vae_tile_size", None),
            ("vae_tile_overlap", 0.25),
        ):
            if getattr(config, name) != default:
                raise ConfigError(
                    f"`{name}` = {getattr(config, name)!r} while `enable_vae_tiling` is False; "
                    f"set enable_vae_tiling=True or {name}={default!r}"
                )
    if config.vae_tile_mode == "exact" and config.vae_tile_overlap != 0.25:
        raise ConfigError(
            f"`vae_tile_overlap` = {config.vae_tile_overlap} is of blended tiles, but "
            "`vae_tile_mode` is 'exact'; set vae_tile_mode='blended' or vae_tile_overlap=0.25"
        )
    if config.vae_decode_chunk_size is not None and not config.enable_vae_slicing:
        raise ConfigError(
            f"`vae_decode_chunk_size` = {config.vae_decode_chunk_size} while `enable_vae_slicing` "
            "is False; set enable_vae_slicing=True or vae_decode_chunk_size=None"
        )


def _attention(config: MemoryOptimizationConfig) -> None:
    if config.attention_slice_size != "auto" and config.attention not in ("auto", "sliced"):
        raise ConfigError(
            f"`attention_slice_size` = {config.attention_slice_size!r} has no effect with "
            f"`attention` = {config.attention!r}; set attention='sliced' or "
            "attention_slice_size='auto'"
        )


def _cleanup(config: MemoryOptimizationConfig) -> None:
    if config.after_step and config.cleanup == "off":
        raise ConfigError(
            "`after_step` = True asks for a cleanup after every step while `cleanup` is 'off'; "
            "set cleanup='pressure' or 'always', or after_step=False"
        )


def _tile_against_factor(config: MemoryOptimizationConfig, factor: int | None) -> None:
    tile = config.vae_tile_size
    if factor is None or tile is None:
        return
    if tile < 2 * factor or tile % factor:
        raise ConfigError(
            f"`vae_tile_size` = {tile} pixels does not suit this VAE, which makes {factor} pixels "
            f"of each latent; give a multiple of {factor}, {max(64, 2 * factor)} or more"
        )


def _budget_against_device(config: MemoryOptimizationConfig, total: int | None) -> None:
    budget = config.budget_bytes
    if budget is not None and total is not None and budget > total:
        raise BudgetError(
            f"the budget of {format_bytes(budget)} is larger than the device's "
            f"{format_bytes(total)}; lower it, or leave it out to use the whole device"
        )

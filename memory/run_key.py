"""The names a run is kept under in the history: whoever predicts one and whoever measures it must
call it the same.

Names tell classes and sizes, never a file, a path or a prompt. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .history_rows import Key
from .levels import PLANNED, MemoryOptimizationConfig
from .units import format_bytes

if TYPE_CHECKING:
    from .device import DeviceSnapshot

AS_LOADED = "none"
"""The plan of a model nobody has changed."""

PATCHED = "patched"

_LEFT_OUT = (
    "level", "requested_level", "reason", "cleanup", "after_load", "after_lora", "after_step",
    "after_unload", "on_exit", "cleanup_host", "keep_originals", "history", "step_peaks",
)  # fmt: skip
"""Fields that change nothing of a stage's peak or time."""


def gpu_name(reading: DeviceSnapshot, torch_version: str) -> str:
    """A device with its memory and its software: another torch may need more or less."""
    return f"{reading.name}, {format_bytes(reading.total)}, {reading.kind}, torch {torch_version}"


def model_name(kind: str, size: int) -> str:
    """A model by the name of its class and the bytes of its weights."""
    return f"{kind}, {format_bytes(size)}"


def pipeline_name(kind: str, parameters: int) -> str:
    """A pipeline by the name of its class and its parameters: their bytes change with the plan."""
    return f"{kind}, {parameters / 1e6:.1f} million parameters"


def shape_name(shape: Sequence[int]) -> str:
    """``(1, 4, 128, 128)`` as ``1x4x128x128``."""
    return "x".join(str(int(edge)) for edge in shape)


def positions(shape: Sequence[int]) -> int:
    """Positions of latents (batch, channels, ...): all images together, channels left out."""
    return math.prod(int(edge) for edge in (*shape[:1], *shape[2:]))


def plan_name(config: MemoryOptimizationConfig, *, patched: bool = False) -> str:
    """A configuration as its level's name and what differs from that level.

    Args:
        patched: whether LoRAs or other patches are on the model.
    """
    usual = MemoryOptimizationConfig.from_level(config.level).to_dict()
    words = [config.level.value]
    for name, value in config.to_dict().items():
        if name not in _LEFT_OUT and value != usual[name]:
            shown = format_bytes(value) if name == "budget_bytes" else value
            words.append(f"{name}={shown}")
    if patched:
        words.append(PATCHED)
    return ", ".join(words)


def pipeline_key(
    reading: DeviceSnapshot,
    kind: str,
    modules: Iterable[Any],
    config: MemoryOptimizationConfig,
    images: tuple[int, int, int],
    torch_version: str,
) -> Key:
    """The key of a pipeline's run. A budget is a part of it only where it was planned.

    Args:
        kind: the pipeline's class. modules: its components with weights.
        images: how many, and their height and width in pixels.
    """
    count, height, width = images
    parameters = sum(it.numel() for module in modules for it in module.parameters())
    return Key(
        gpu_name(reading, torch_version),
        pipeline_name(kind, parameters),
        f"{count}x{height}x{width}",
        plan_name(config if config.offload == PLANNED else config.replace(budget_bytes=None)),
        count * height * width,
    )


def level_of(plan: str) -> str:
    """The level a :func:`plan_name` begins with."""
    return plan.partition(",")[0]

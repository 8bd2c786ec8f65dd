"""The Memory Level Selector's widgets: what its budget comes to, and what it says it chose.

No torch here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .errors import BudgetError, ConfigError
from .levels import CHOSEN_FOR_YOU, MemoryOptimizationConfig, OptimizationLevel, selected
from .units import format_bytes, gb_to_bytes

if TYPE_CHECKING:
    from .device import DeviceSnapshot


def budget_of(budget_gb: float, found: DeviceSnapshot) -> int | None:
    """The widget's budget in bytes; ``None`` for 0.

    Raises:
        ConfigError: no amount. BudgetError: more than the device has.
    """
    if isinstance(budget_gb, bool) or not isinstance(budget_gb, (int, float)):
        raise ConfigError(f"the budget {budget_gb!r} is no number; give GB, or 0 for no budget")
    if not math.isfinite(budget_gb) or budget_gb < 0:
        raise ConfigError(
            f"a budget of {budget_gb} GB cannot be kept; give more than 0 GB, at most the "
            f"{format_bytes(found.total)} of {found.device}, or 0 for no budget"
        )
    if budget_gb == 0:
        return None
    budget = gb_to_bytes(budget_gb)
    if found.total is not None and budget > found.total:
        raise BudgetError(
            f"a budget of {format_bytes(budget)} is more than {found.device} has; give at most "
            f"{format_bytes(found.total)}, or 0 for no budget"
        )
    if budget == 0:
        raise ConfigError(
            f"a budget of {budget_gb} GB is less than one byte; give more, or 0 for no budget"
        )
    return budget


def config_of(
    level: str, budget_gb: float, cleanup: str, found: DeviceSnapshot
) -> MemoryOptimizationConfig:
    """The configuration that the widgets stand for on a device.

    Raises:
        ConfigError: an unknown level or policy, or a budget that is no amount.
        BudgetError: a budget larger than the device.
    """
    parsed = selected(level)
    budget = budget_of(budget_gb, found)
    if parsed in CHOSEN_FOR_YOU:
        config = MemoryOptimizationConfig.auto(found, requested_level=parsed)
    else:
        config = MemoryOptimizationConfig.from_level(parsed)
    return config.replace(budget_bytes=budget, cleanup=cleanup)


def describe(config: MemoryOptimizationConfig, found: DeviceSnapshot) -> str:
    """What was found and decided, a line each."""
    budget = "none" if config.budget_bytes is None else format_bytes(config.budget_bytes)
    shared = ", shared with the host" if found.unified else ""
    others = found.reserved_by_others
    lines = [
        f"Device: {found.device} ({found.name}), {format_bytes(found.total)} in all{shared}, "
        f"{format_bytes(found.free)} free"
        + ("" if others is None else f", {format_bytes(others)} held by other programs"),
        f"Level: {_level(config)}",
        f"Budget: {budget}",
        f"Cleanup: {config.cleanup}",
    ]
    return "\n".join(lines)


def _level(config: MemoryOptimizationConfig) -> str:
    found = f"{config.level.value} ({config.reason or 'chosen by hand'})"
    if config.requested_level is not OptimizationLevel.FASTEST:
        return found
    return f"the fastest that fits, chosen by Optimize Pipeline; {found} where it can't predict"

"""The levels by name, those that stand for another one, and what the selector node calls them.

No torch here.
"""

from __future__ import annotations

from enum import Enum

from .errors import ConfigError


class OptimizationLevel(str, Enum):
    """How much speed is given for how much memory.

    ``AUTO`` goes by the size of the device's memory and by nothing else, so that it is settled as
    soon as it is asked for. ``FASTEST`` is settled when it is applied to a model: the fastest level
    whose predicted peak fits what is free then; AUTO's, where nothing can be predicted.
    """

    AUTO = "auto"
    FASTEST = "fastest"
    NONE = "none"
    BALANCED = "balanced"
    AGGRESSIVE = "aggressive"
    ULTRA = "ultra"

    @classmethod
    def parse(cls, value: str | OptimizationLevel) -> OptimizationLevel:
        """The level of that name, in any case.

        Raises:
            ConfigError: there is no such level; the message lists the choices.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            try:
                return cls(value.strip().lower())
            except ValueError:
                pass
        choices = ", ".join(level.value for level in cls)
        raise ConfigError(f"unknown level {value!r}; choose one of: {choices}")


CHOSEN_FOR_YOU = (OptimizationLevel.AUTO, OptimizationLevel.FASTEST)
PLANNED = "planned"  # the offload of a pipeline whose budget was planned
"""Levels that stand for another one; no configuration stays at them."""

SELECTOR = {
    "auto": OptimizationLevel.FASTEST,
    "auto (by VRAM size)": OptimizationLevel.AUTO,
    "none": OptimizationLevel.NONE,
    "balanced": OptimizationLevel.BALANCED,
    "aggressive": OptimizationLevel.AGGRESSIVE,
    "ultra": OptimizationLevel.ULTRA,
}
"""What the Memory Level Selector calls the levels; saved graphs hold these names."""


def selected(name: str) -> OptimizationLevel:
    """The level of that name in the Memory Level Selector.

    Raises:
        ConfigError: it offers no such level; the message lists the choices.
    """
    level = SELECTOR.get(name)
    if level is None:
        raise ConfigError(f"unknown level {name!r}; choose one of: {', '.join(SELECTOR)}")
    return level


def chosen_by_hand(level: OptimizationLevel) -> str:
    """The reason of a configuration nobody chose but the user."""
    return f"{level.value} was chosen by hand"

"""A level and a budget that stand in for those of the graph's Memory Level Selector.

Set by hand at any time, taken over only when a run begins: what one run's nodes are given never
changes in its middle. Safe to use from any thread.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from .errors import ConfigError
from .levels import CHOSEN_FOR_YOU, OptimizationLevel

MOST_GB = 1024.0


@dataclass(frozen=True)
class Override:
    """``None`` leaves the selector's own choice; a budget is in GB."""

    level: str | None = None
    budget_gb: float | None = None

    def __bool__(self) -> bool:
        return self.level is not None or self.budget_gb is not None

    def to_dict(self) -> dict[str, str | float | None]:
        """The override as plain JSON values."""
        return {"level": self.level, "budget_gb": self.budget_gb}

    def text(self) -> str:
        """What it sets, for a person."""
        said = [] if self.level is None else [f"level {self.level}"]
        said += [] if self.budget_gb is None else [f"a budget of {self.budget_gb:g} GB"]
        return " and ".join(said) or "nothing"


_lock = threading.Lock()
_state = {"next": Override(), "now": Override()}


def set_next(level: str | None, budget_gb: float | None) -> Override:
    """Say what the next runs get, until it is said anew; both ``None`` ends it.

    Raises:
        ConfigError: no level a run can have (``auto`` is none), or no budget above 0 GB.
    """
    if level is not None and OptimizationLevel.parse(level) in CHOSEN_FOR_YOU:
        raise ConfigError(
            f"`level` = {level!r} is what the selector does by itself; give null to leave it to "
            f"that"
        )
    if budget_gb is not None and not 0 < budget_gb <= MOST_GB:
        raise ConfigError(
            f"`budget_gb` = {budget_gb} cannot be kept; give more than 0 and at most "
            f"{MOST_GB:g} GB, or null for the selector's own"
        )
    wanted = Override(None if level is None else OptimizationLevel.parse(level).value, budget_gb)
    with _lock:
        _state["next"] = wanted
    return wanted


def next_runs() -> Override:
    """What the next run gets."""
    with _lock:
        return _state["next"]


def begin_run() -> Override:
    """A run begins: what was said for the next one is in force from now on."""
    with _lock:
        _state["now"] = _state["next"]
        return _state["now"]


def in_force() -> Override:
    """What the run that is running, or ran last, was given."""
    with _lock:
        return _state["now"]


def instead_of(level: str, budget_gb: float) -> tuple[str, float, list[str]]:
    """A selector's level and budget with what is in force in their place, and a line about it."""
    forced = in_force()
    if not forced:
        return level, budget_gb, []
    said = f"Overlay: {forced.text()} in place of this node's own (level {level}, {budget_gb:g} GB)"
    chosen = level if forced.level is None else forced.level
    return chosen, budget_gb if forced.budget_gb is None else forced.budget_gb, [said]

"""A ControlNet whose weights are under the same cap and budget as the model it steers."""

from __future__ import annotations

from typing import Any

_PATCHER = "control_model_wrapped"


def patcher_of(control: Any) -> Any:
    """The patcher the core loads it with; ``None`` for kinds that move their weights themselves."""
    return getattr(control, _PATCHER, None)


def with_patcher(control: Any, patcher: Any) -> Any:
    """A copy loaded with ``patcher`` that follows the same ControlNets; no weights are copied."""
    twin = control.copy()
    setattr(twin, _PATCHER, patcher)
    # The core's copy begins a chain of its own.
    twin.set_previous_controlnet(control.previous_controlnet)
    return twin

"""Keeping a graph under its budget while ComfyUI's own models run."""

from __future__ import annotations

import logging
from typing import Any

from ... import backend
from ...units import format_bytes
from .patchers import Residency

logger = logging.getLogger("lowtide")


def before_sampling(model: Any, residency: Residency, noise_shape: Any, conds: Any) -> None:
    """Note what sampling will need beside the weights, and make that much room.

    The core's estimate is hand-tuned and usually high, so that a budget it exceeds is a warning
    here and no refusal: everything is streamed and the run may well fit.
    """
    from comfy.sampler_helpers import estimate_memory

    assert residency.budget is not None
    wanted, least = (int(size) for size in estimate_memory(model, noise_shape, conds))
    fits = residency.streaming + least <= residency.budget
    model.lowtide_activations = wanted
    if not fits:
        logger.warning(
            "the budget of %s is below ComfyUI's estimate for this size (%s of activations and "
            "%s of streamed weights); everything is streamed, and the peak may exceed the budget. "
            "A budget of %s would do, or a smaller image",
            format_bytes(residency.budget),
            format_bytes(least),
            format_bytes(residency.streaming),
            format_bytes(residency.streaming + least),
        )
    resident = residency.weights(wanted) or 0
    make_room(model, residency.budget, residency.streaming + wanted + resident)


def make_room(patcher: Any, budget: int | None, need: int) -> None:
    """Take other models off the device if ``need`` bytes would not fit under the budget."""
    if budget is None:
        return
    held = backend.allocated(backend.device_of(patcher.load_device))
    if held is None:
        return
    from .models import loaded_bytes, unload_others

    others = held - loaded_bytes(patcher)
    if others > 0 and others + need > budget:
        unload_others(patcher)

"""What to change where no plan fits, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..units import format_bytes
from .predict import DECODE, ENCODE, Prediction

if TYPE_CHECKING:
    from .planner import Choice, Limits


def remedies(worst: Choice | None, smallest: int, limits: Limits) -> tuple[str, ...]:
    """What would have to change for the component that takes most even with everything streamed."""
    assert worst is not None
    stage = worst.turn.stage
    what = f"a budget of {format_bytes(limits.budget)} cannot hold the {worst.turn.name}"
    need = (
        f"even with everything streamed it is predicted to take {format_bytes(worst.peak)} "
        f"({stage}); the smallest budget that would do is {format_bytes(smallest)}"
    )
    if stage == DECODE:
        change = "a smaller tile (vae_tile_size) or a smaller image needs less"
    elif stage == ENCODE:
        change = "its largest layer alone takes most of that; compute it on the CPU (cpu_mode)"
    else:
        change = "a smaller image, a smaller batch or feed-forward chunks need less"
    return (f"{what}: {need}; {change}",)


def beyond(prediction: Prediction, limits: Limits) -> tuple[str, ...]:
    """Which other limits the plan breaks, and what to do."""
    found = []
    if limits.device is not None and prediction.device_peak > limits.device:
        found.append(
            f"the allocator would reserve {format_bytes(prediction.device_peak)}, the context "
            f"included, of {format_bytes(limits.device)}: give a smaller budget"
        )
    if limits.host is not None and prediction.host_bytes > limits.host:
        found.append(
            f"{format_bytes(prediction.host_bytes)} of weights would wait in host memory, and "
            f"{format_bytes(limits.host)} are free: give a larger budget, or a smaller model"
        )
    return tuple(found)

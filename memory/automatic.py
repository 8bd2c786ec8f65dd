"""AUTO: which level a device's memory calls for. No torch here, as in ``levels.py``.

FASTEST begins as AUTO's level and stays there where nothing can be predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

from .levels import CHOSEN_FOR_YOU, OptimizationLevel, chosen_by_hand
from .units import GIB, format_bytes


@dataclass(frozen=True)
class _Threshold:
    below_gb: float
    level: OptimizationLevel
    cpu_mode: bool = False


_THRESHOLDS = (
    _Threshold(4, OptimizationLevel.ULTRA, cpu_mode=True),
    _Threshold(6, OptimizationLevel.ULTRA),
    _Threshold(8, OptimizationLevel.AGGRESSIVE),
    _Threshold(12, OptimizationLevel.BALANCED),
)

_MARKETED_STEP = GIB // 2
"""Cards sold as 4, 6, 8, 12 GB report 3.81-4, 5.80-6, 7.79-8 and 11.76-12 GB: the driver, ECC
and firmware keep a little. The nearest half GB is the size on the box."""


def marketed_size(total_bytes: int) -> int:
    """``total_bytes`` rounded to the nearest half GB, which is what the card is sold as."""
    return (total_bytes + _MARKETED_STEP // 2) // _MARKETED_STEP * _MARKETED_STEP


def resolve_level(
    level: str | OptimizationLevel, total_bytes: int | None, *, unified: bool | None = None
) -> tuple[OptimizationLevel, str, bool]:
    """Settle AUTO against a device of ``total_bytes``: (level, reason to show, CPU mode).

    FASTEST begins as the same.

    Below 4 GB: ULTRA with CPU mode. Below 6: ULTRA. Below 8: AGGRESSIVE. Below 12: BALANCED.
    Else NONE. ``total_bytes`` is what the device may use: for unified memory the share the
    system leaves to it, which the probe settles. An unknown size gives BALANCED: images stay as
    they are and peaks fall, and the reason says that nothing was measured.
    """
    asked = OptimizationLevel.parse(level)
    if asked not in CHOSEN_FOR_YOU:
        return asked, chosen_by_hand(asked), False
    if total_bytes is None:
        reason = (
            "the device does not say how much memory it has: balanced is the cautious middle; "
            "choose a level by hand if images fail or memory is plentiful"
        )
        return OptimizationLevel.BALANCED, reason, False
    size = marketed_size(total_bytes)
    named = f"{format_bytes(total_bytes)}{' of unified memory usable' if unified else ''}"
    for threshold in _THRESHOLDS:
        if size < threshold.below_gb * GIB:
            tail = ", with CPU mode" if threshold.cpu_mode else ""
            reason = f"{named}, under {threshold.below_gb:g} GB: {threshold.level.value}{tail}"
            return threshold.level, reason, threshold.cpu_mode
    reason = f"{named}, {_THRESHOLDS[-1].below_gb:g} GB or more: nothing needs to be saved"
    return OptimizationLevel.NONE, reason, False

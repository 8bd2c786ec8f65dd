"""What earlier runs of a model needed on the device beside the weights that stayed there.

Kept for this process, by model and by what was asked of it, for a bounded number of questions.
Models are held weakly: nothing here keeps weights alive.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

MOST = 64
"""Questions remembered for one model; the oldest is forgotten first."""

SLACK = 2 << 20
"""Left free beside what was measured: torch's allocators count a block of their cache as a whole
if less than 1 MiB of it would be left over, and which blocks are met depends on what is resident.
"""


@dataclass(frozen=True)
class Need:
    """``beside`` bytes at the peak, measured with ``resident`` bytes of weights on the device.

    With more weights resident no layer is streamed that was not then, so that ``beside`` holds
    for them too; with fewer it says nothing.
    """

    beside: int
    resident: int

    def room(self, budget: int) -> int | None:
        """Bytes of weights that fit under ``budget``; ``None`` if none do or it is not known."""
        room = max(0, budget - self.beside - SLACK)
        return None if self.beside > budget or room < self.resident else room


_needs: weakref.WeakKeyDictionary[Any, OrderedDict[Hashable, Need]] = weakref.WeakKeyDictionary()


def recall(model: Any, question: Hashable) -> Need | None:
    """What is known of ``question``."""
    return _needs.get(model, OrderedDict()).get(question)


def remember(model: Any, question: Hashable, need: Need) -> Need:
    """Take a measurement in; returns what is known now."""
    known = _needs.setdefault(model, OrderedDict())
    before = known.pop(question, None)
    if before is not None and before.resident < need.resident:
        need = Need(max(before.beside, need.beside), before.resident)
    known[question] = need
    while len(known) > MOST:
        known.popitem(last=False)
    return need


def forget_all() -> None:
    """Know nothing again."""
    _needs.clear()

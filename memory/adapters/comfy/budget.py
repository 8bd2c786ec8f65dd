"""Keeping a graph under its budget while ComfyUI's own models run: room, measuring, refusing."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from ... import backend
from ...errors import BudgetError
from ...peaks import PeakWindow
from ...units import GIB, format_bytes
from . import staying
from .limits import padding, streaming_bytes, streams_all
from .measured import Need, recall, remember
from .patchers import Budgeted, expect, marked, with_residency
from .residency import Residency, residency_of

logger = logging.getLogger("lowtide")

_WIDGET_STEP = GIB / 1000
"""What the budget's widget rounds to: a budget named here must be one that can be given."""


def make_room(parts: Sequence[Any], budget: int | None, need: int) -> None:
    """Take other models off the device if ``need`` bytes of ``parts`` would not fit beside them.

    Of those that stay under a budget as much as is missing; of others all, where that is too
    little. With the budget itself as ``need`` nothing stays.
    """
    if budget is None:
        return
    from .models import unload_others

    make_way(parts, budget, need)
    if _beside(parts) + need > budget:
        unload_others(*parts)


def make_way(parts: Sequence[Any], budget: int, need: int) -> None:
    """As ``make_room``, of models that stay under a budget only: others may be at work."""
    missing = _beside(parts) + need - budget
    if missing > 0:
        staying.give_way(parts, missing)


def _beside(parts: Sequence[Any]) -> int:
    """Bytes on the device besides the weights of ``parts``; 0 where the backend does not say."""
    from .models import loaded_bytes

    held = backend.allocated(backend.device_of(parts[0].load_device))
    return 0 if held is None else max(0, held - sum(map(loaded_bytes, parts)))


def measured_need(patcher: Any, question: Hashable, budget: int) -> int | None:
    """Bytes of a budget that a turn takes with all its weights there; ``None`` where that was not
    measured, or does not fit."""
    known = recall(patcher.model, question)
    room = None if known is None else known.room(budget)
    size = _size(patcher)
    return None if room is None or room < size else budget - room + size


def _size(patcher: Any) -> int:
    return int(patcher.model_size()) + padding(patcher)


def under(patcher: Any, residency: Residency, *, whole: bool = False) -> Any:
    """A clone for turns under a budget; with ``whole`` its weights are never streamed.

    Nor are they where a layer cannot be: the core would leave it behind on the host.
    """
    residency = replace(residency, streaming=streaming_bytes(patcher))
    if whole or not streams_all(patcher.model):
        return marked(patcher, replace(residency, streaming=0))
    return with_residency(patcher, residency)


def refuse(patcher: Any, budget: int, need: int, what: str, smaller: str) -> NoReturn:
    """Take the model off its device and raise a BudgetError that names what would do."""
    from .models import leave_device

    leave_device(patcher)
    raise BudgetError(
        f"a budget of {format_bytes(budget)} cannot hold the {what}: with all its weights streamed "
        f"it needed {format_bytes(need)} at its peak. Give at least {givable(need)}, or {smaller}"
    )


def givable(need: int) -> str:
    """The smallest budget for ``need`` bytes that the widget takes, in GB."""
    return f"{-(-need // _WIDGET_STEP) / 1000:.3f} GB"


class Measured:
    """The peak over a block, while ``parts`` keep what they have on the device.

    After the block ``peak`` is the most bytes allocated, ``resident`` the weights among them,
    ``kept`` those of models that stay for a turn of theirs, ``beside`` the rest, and ``base`` what
    was there besides the weights when the block began.
    ``afresh`` is what to expect of ``beside`` where the core has yet to make its streaming
    buffers: while one grows, the smaller one is still there. All are ``None`` where the backend
    does not say.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts
        self.peak: int | None = None
        self.window: PeakWindow | None = None
        self._grown = 0
        self.resident = self.beside = self.base = self.afresh = self.kept = 0

    def __enter__(self) -> Measured:
        from .models import largest_cast_buffer

        self._grown = largest_cast_buffer()
        device = backend.device_of(self.parts[0].load_device)
        self.window = None if backend.allocated(device) is None else PeakWindow(device)
        self.base = self.base_now()
        return self

    def base_now(self) -> int:
        """Bytes allocated at this moment besides weights and streaming buffers."""
        from .models import cast_buffers

        held = backend.allocated(backend.device_of(self.parts[0].load_device)) or 0
        kept = staying.bytes_beside(self.parts)
        return max(0, held - _resident(self.parts) - kept - cast_buffers())

    def __exit__(self, *_: object) -> None:
        if self.window is not None:
            self.peak = self.window.close().allocated
        self.resident = _resident(self.parts)
        self.kept = staying.bytes_beside(self.parts)
        self.beside = max(0, (self.peak or 0) - self.resident - self.kept)
        self.afresh = self.beside + self._grown
        if self.peak is not None:
            staying.note_turn(self.peak, self.kept)


class Turn:
    """A component's turn on the device under its budget, from loading to leaving.

    Its weights are streamed unless what was measured earlier, or ``estimate`` bytes beside them
    where nothing was, leaves room for all of them: they are used about once, and keeping a part
    would save nothing, unless it has a turn ``again`` soon. The turn is measured for the next one
    of the same ``question``.
    """

    def __init__(
        self,
        patcher: Any,
        question: Hashable,
        what: str,
        smaller: str,
        estimate: int | None = None,
        again: bool = False,
    ) -> None:
        residency = residency_of(patcher)
        self.budget = None if residency is None else residency.budget
        self.patcher = patcher
        self.question = question
        self.what = what
        self.smaller = smaller
        self.estimate = estimate
        self.again = again
        self.measured = Measured([patcher])

    def begin(self) -> None:
        """Make room, and say how much of the weights may be resident."""
        budget, patcher = self.budget, self.patcher
        if budget is None:
            return
        size = _size(patcher)
        known = recall(patcher.model, self.question)
        room = None if known is None else known.room(budget)
        if known is None and self.estimate is not None:
            room = budget - self.estimate
        whole = room is not None and room >= size
        if known is None:  # an estimate is not enough for what would stay beside it
            make_way([patcher], budget, budget)
        make_room([patcher], budget, budget - room + size if whole and room is not None else budget)
        if isinstance(patcher, Budgeted):
            part = known.room(budget) if self.again and known is not None else None
            patcher.lowtide_room = size if whole else part or 0
            expect(patcher)
        self.measured.__enter__()

    def end(self, failed: bool) -> None:
        """Take the measurement in.

        Raises:
            BudgetError: the turn went over the budget although everything was streamed.
        """
        budget, found = self.budget, self.measured
        if budget is None:
            return
        found.__exit__()
        self.patcher.lowtide_room = None
        expect(self.patcher, False)
        if failed or found.peak is None:
            return
        remember(self.patcher.model, self.question, Need(found.afresh, found.resident))
        if found.peak <= budget:
            return
        alone = not found.kept
        if alone and (found.resident == 0 or not isinstance(self.patcher, Budgeted)):
            refuse(self.patcher, budget, found.peak, self.what, self.smaller)
        over(budget, found.peak, self.what)


def over(budget: int, peak: int, what: str) -> None:
    """Say that a peak went over the budget once; the next one will not."""
    logger.warning(
        "the %s took %s at its peak, more than the budget of %s: fewer weights stay beside it from "
        "now on",
        what,
        format_bytes(peak),
        format_bytes(budget),
    )


def _resident(parts: Sequence[Any]) -> int:
    return sum(int(part.loaded_size()) for part in parts)

"""Chooses what lies where: the least predicted time among what fits. Pure: figures in, plan out.

Components take turns, so each is chosen for itself. For each: all resident if that fits; else
streamed, with as much resident as the budget leaves, tried with several depths of the pool that
copies run ahead in and several orders of what to stream. What costs quality (FP8, blended tiles)
is taken where it is needed, or where it saves ``WORTH`` of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from .advice import beyond, remedies
from .orders import ORDERS, streamed_by
from .placement import Placement
from .predict import Prediction, Turn, predict
from .schedule import Rates, duration, whole_copy

MARGIN = 0.03
"""Of the allocated peak, kept free until this machine's own runs have corrected predictions."""
WORTH = 0.1
_DEPTHS = (1, 2, 4, 8)
_ALIKE = 0.02
_TRIES = 4


@dataclass(frozen=True)
class Limits:
    """What a plan must keep to, in bytes; ``None`` = no limit.

    Attributes:
        budget: the most allocated on the device, ``margin`` of the prediction kept free.
        device: the most reserved there, the context included.
        host: weights in host memory.
        pinned: page-locked host memory.
        faithful: whether what changes the image is taken only where nothing else fits.
        by_moved: whether the fewest bytes moved decide, and not the predicted time.
    """

    budget: int | None = None
    device: int | None = None
    host: int | None = None
    pinned: int | None = None
    margin: float = MARGIN
    faithful: bool = False
    by_moved: bool = False

    def without(self, nbytes: int) -> Limits:
        """The same with ``nbytes`` of the budget taken by something else."""
        if self.budget is None:
            return self
        return replace(self, budget=self.budget - math.ceil(nbytes * (1 + self.margin)))

    def holds(self, allocated: int) -> bool:
        """Whether a predicted peak fits the budget with its margin."""
        return self.budget is None or allocated * (1 + self.margin) <= self.budget

    def smallest(self, allocated: int) -> int:
        """The least budget that holds a predicted peak, as the budget's widget takes it."""
        step = (1 << 30) // 1000 + 1
        need = int(allocated * (1 + self.margin)) + 1
        return -(-need // step) * step

    @property
    def room(self) -> int | None:
        """The largest prediction that fits."""
        return None if self.budget is None else int(self.budget / (1 + self.margin))


@dataclass(frozen=True)
class Option:
    """One way a component may work. ``turn`` is with everything resident.

    Attributes:
        changes: settings that bring it about, by name.
        fp8: whether its weights may be stored in FP8.
        partial: whether some of its weights may be resident while others are streamed.
        orders: which of ``ORDERS`` the host can follow.
        depths: how many units ahead it can copy; none = copies wait for the computation.
        loses: whether the image changes (blended tiles).
    """

    turn: Turn
    changes: Mapping[str, Any] = field(default_factory=dict)
    fp8: bool = False
    partial: bool = True
    orders: tuple[str, ...] = ORDERS
    depths: tuple[int, ...] = _DEPTHS
    loses: bool = False


@dataclass(frozen=True)
class Choice:
    """What one component is to do; bytes and seconds of its whole stage."""

    turn: Turn
    changes: Mapping[str, Any]
    peak: int
    seconds: float
    moved: int
    loses: bool
    how: str


@dataclass(frozen=True)
class Plan:
    """The choices, or what would have to change for them to fit.

    Attributes:
        smallest_budget: bytes of the least budget with which a plan can be made; rounded up.
        advice: what to change, where nothing fits; what limits the plan, where something does.
    """

    fits: bool
    choices: tuple[Choice, ...]
    prediction: Prediction | None
    smallest_budget: int
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "fits": self.fits,
            "smallest_budget_bytes": self.smallest_budget,
            "advice": list(self.advice),
            "choices": {
                choice.turn.name: {
                    "how": choice.how,
                    "changes": dict(choice.changes),
                    "fp8": choice.turn.placement.fp8,
                    "resident_bytes": choice.turn.layout.resident_bytes,
                    "streamed_bytes": choice.turn.layout.streamed_bytes,
                    "peak_allocated_bytes": choice.peak,
                    "seconds": choice.seconds,
                }
                for choice in self.choices
            },
            "prediction": None if self.prediction is None else self.prediction.to_dict(),
        }


def choose(
    components: Sequence[Sequence[Option]],
    limits: Limits,
    rates: Rates,
    *,
    workspace_factor: float = 1.0,
    context_bytes: int = 0,
) -> Plan:
    """The fastest plan within ``limits``: one option of each component, in order of work."""
    chosen: list[Choice] = []
    least: list[tuple[int, Choice]] = []
    for options in components:
        found = [
            choice
            for option in options
            for choice in _ways(option, limits, rates, workspace_factor)
        ]
        smallest = min(found, key=lambda choice: (choice.peak, choice.seconds))
        least.append((smallest.peak, smallest))
        fitting = [choice for choice in found if limits.holds(choice.peak)]
        if fitting:
            chosen.append(_best(fitting, limits))
    peak, worst = max(least, key=lambda one: one[0], default=(0, None))
    smallest_budget = limits.smallest(peak)
    if len(chosen) < len(components):
        return Plan(False, (), None, smallest_budget, remedies(worst, smallest_budget, limits))
    prediction = predict(
        [choice.turn for choice in chosen],
        rates=rates,
        workspace_factor=workspace_factor,
        context_bytes=context_bytes,
    )
    advice = beyond(prediction, limits)
    return Plan(not advice, tuple(chosen), prediction, smallest_budget, advice)


def _best(choices: list[Choice], limits: Limits) -> Choice:
    def fastest(some: list[Choice]) -> Choice:
        if limits.by_moved:
            return min(some, key=lambda choice: (choice.moved, choice.seconds))
        # Predicted times are not that exact: of what is about as fast, what moves least.
        bound = min(choice.seconds for choice in some) * (1 + _ALIKE)
        alike = [choice for choice in some if choice.seconds <= bound]
        return min(alike, key=lambda choice: (choice.moved, choice.peak))

    def cost(choice: Choice) -> float:
        return choice.moved if limits.by_moved else choice.seconds

    best = fastest(choices)
    faithful = [choice for choice in choices if not choice.loses]
    if best.loses and faithful:
        same = fastest(faithful)
        if limits.faithful or cost(same) <= cost(best) * (1 + WORTH):
            return same
    return best


def _ways(option: Option, limits: Limits, rates: Rates, factor: float) -> Iterator[Choice]:
    """What an option comes to: all resident, all streamed, and the best in between.

    All: what the option's own placement keeps, so that weights never read need not come.
    """
    for fp8 in (False, True) if option.fp8 else (False,):
        base = replace(option.turn.placement, fp8=fp8)
        whole = replace(option.turn, placement=base)
        every = _choice(option, whole, rates, factor, "resident")
        yield every
        if limits.holds(every.peak) and not fp8:
            return  # nothing is faster than weights that are there
        if limits.holds(every.peak):
            continue
        ahead = 1 if option.depths else 0
        pinned = ahead > 0
        if limits.pinned is not None:
            pinned = pinned and whole.layout.resident_bytes <= limits.pinned
        streamed = replace(base, resident=frozenset(), ahead=ahead, pinned=pinned, stays=False)
        lean = _choice(option, replace(whole, placement=streamed), rates, factor, "streamed")
        yield lean
        room = limits.room
        if option.partial and room is not None and lean.peak < room:
            yield from _between(option, lean, room, rates, factor, limits.by_moved)


def _between(
    option: Option, lean: Choice, room: int, rates: Rates, factor: float, by_moved: bool
) -> Iterator[Choice]:
    """As much resident as ``room`` leaves. Blocks of the allocator may be larger than what is in
    them: what comes out too large is tried again with less."""
    left = room - lean.peak
    for _ in range(_TRIES):
        found = _filled(option, lean, left, rates, factor, by_moved)
        if found is None:
            return
        if found.peak <= room:
            yield found
            return
        left -= found.peak - room


def _filled(
    option: Option, lean: Choice, room: int, rates: Rates, factor: float, by_moved: bool
) -> Choice | None:
    """``room`` bytes resident, in the order and depth that take or move least."""
    turn = lean.turn
    largest = turn.layout.largest_unit
    best: tuple[float, float, Placement] | None = None
    for depth in option.depths:
        left = room - (depth - 1) * largest
        if left <= 0:
            break
        for order in option.orders:
            resident = streamed_by(order, turn.trace, turn.layout, left, rates)
            placement = replace(turn.placement, resident=resident, ahead=depth)
            trial = replace(turn, placement=placement)
            one = duration(turn.trace, trial.layout, placement, rates)
            moved = trial.layout.resident_bytes + turn.calls * one.moved
            cost = (moved, one.seconds) if by_moved else (one.seconds, moved)
            if best is None or cost < (best[0] * (1 - (0 if by_moved else _ALIKE)), best[1]):
                best = *cost, placement
    if best is None:
        return None
    return _choice(option, replace(turn, placement=best[2]), rates, factor, "partly resident")


def _choice(option: Option, turn: Turn, rates: Rates, factor: float, how: str) -> Choice:
    placement, layout = turn.placement, turn.layout
    ahead = max(0, placement.ahead - 1) * layout.largest_unit if placement.streams else 0
    one = duration(turn.trace, layout, placement, rates)
    arrival = 0.0
    if not placement.stays:
        arrival = whole_copy(layout.resident_bytes, rates, placement.pinned)
    return Choice(
        turn,
        {**option.changes, **({"fp8_storage": True} if placement.fp8 else {})},
        _peak_alone(turn, factor) + ahead,
        arrival + turn.calls * one.seconds,
        layout.resident_bytes + turn.calls * one.moved,
        option.loses or placement.fp8,
        how,
    )


@lru_cache(maxsize=128)
def _peak_alone(turn: Turn, factor: float) -> int:
    """Most bytes allocated by the turn on an empty device. Kept: budgets are tried one after the
    other, and what is all resident or all streamed is the same in each."""
    return predict([turn], workspace_factor=factor).peak_allocated

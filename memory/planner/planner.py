"""Chooses what lies where: the least predicted time among what fits. Pure: figures in, plan out.

Components take turns, so each is chosen for itself. For each: all resident if that fits; else
streamed, with as much resident as the budget leaves, tried with several depths of the pool that
copies run ahead in and several orders of what to stream. What costs quality (FP8, blended tiles)
is taken where it is needed, or where it saves ``WORTH`` of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..units import format_bytes
from .orders import ORDERS, streamed_by
from .placement import Placement
from .predict import DECODE, ENCODE, Prediction, Turn, predict
from .schedule import Rates, duration, whole_copy

MARGIN = 0.03
"""Of the allocated peak, kept free until this machine's own runs have corrected predictions."""
WORTH = 0.1
_DEPTHS = (1, 2, 4, 8)
_ALIKE = 0.02


@dataclass(frozen=True)
class Limits:
    """What a plan must keep to, in bytes; ``None`` = no limit.

    Attributes:
        budget: the most allocated on the device, ``margin`` of the prediction kept free.
        device: the most reserved there, the context included.
        host: weights in host memory.
        pinned: page-locked host memory.
    """

    budget: int | None = None
    device: int | None = None
    host: int | None = None
    pinned: int | None = None
    margin: float = MARGIN

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
        loses: whether the image changes (blended tiles).
    """

    turn: Turn
    changes: Mapping[str, Any] = field(default_factory=dict)
    fp8: bool = False
    partial: bool = True
    orders: tuple[str, ...] = ORDERS
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
            chosen.append(_best(fitting))
    peak, worst = max(least, key=lambda one: one[0], default=(0, None))
    smallest_budget = limits.smallest(peak)
    if len(chosen) < len(components):
        return Plan(False, (), None, smallest_budget, _remedies(worst, smallest_budget, limits))
    prediction = predict(
        [choice.turn for choice in chosen],
        rates=rates,
        workspace_factor=workspace_factor,
        context_bytes=context_bytes,
    )
    advice = _beyond(prediction, limits)
    return Plan(not advice, tuple(chosen), prediction, smallest_budget, advice)


def _best(choices: list[Choice]) -> Choice:
    def fastest(some: list[Choice]) -> Choice:
        # Predicted times are not that exact: of what is about as fast, what moves least.
        bound = min(choice.seconds for choice in some) * (1 + _ALIKE)
        alike = [choice for choice in some if choice.seconds <= bound]
        return min(alike, key=lambda choice: (choice.moved, choice.peak))

    best = fastest(choices)
    faithful = [choice for choice in choices if not choice.loses]
    if best.loses and faithful:
        same = fastest(faithful)
        if same.seconds <= best.seconds * (1 + WORTH):
            return same
    return best


def _ways(option: Option, limits: Limits, rates: Rates, factor: float) -> Iterator[Choice]:
    """What an option comes to: all resident, all streamed, and the best in between."""
    for fp8 in (False, True) if option.fp8 else (False,):
        base = replace(option.turn.placement, fp8=fp8, resident=None)
        whole = replace(option.turn, placement=base)
        every = _choice(option, whole, rates, factor, "resident")
        yield every
        if limits.holds(every.peak) and not fp8:
            return  # nothing is faster than weights that are there
        if limits.holds(every.peak):
            continue
        pinned = limits.pinned is None or whole.layout.resident_bytes <= limits.pinned
        streamed = replace(base, resident=frozenset(), ahead=1, pinned=pinned, stays=False)
        lean = _choice(option, replace(whole, placement=streamed), rates, factor, "streamed")
        yield lean
        room = limits.room
        if option.partial and room is not None and lean.peak < room:
            yield from _between(option, lean, room, rates, factor)


def _between(
    option: Option, lean: Choice, room: int, rates: Rates, factor: float
) -> Iterator[Choice]:
    """As much resident as ``room`` leaves, in the order and depth that take least time."""
    turn = lean.turn
    largest = turn.layout.largest_unit
    best: tuple[float, int, Placement] | None = None
    for depth in _DEPTHS:
        left = room - lean.peak - (depth - 1) * largest
        if left <= 0:
            break
        for order in option.orders:
            resident = streamed_by(order, turn.trace, turn.layout, left, rates)
            placement = replace(turn.placement, resident=resident, ahead=depth)
            trial = replace(turn, placement=placement)
            one = duration(turn.trace, trial.layout, placement, rates)
            if best is None or (one.seconds, one.moved) < (best[0] * (1 - _ALIKE), best[1]):
                best = one.seconds, one.moved, placement
    if best is not None:
        yield _choice(option, replace(turn, placement=best[2]), rates, factor, "partly resident")


def _choice(option: Option, turn: Turn, rates: Rates, factor: float, how: str) -> Choice:
    stage = predict([turn], workspace_factor=factor).stages[turn.stage]
    placement, layout = turn.placement, turn.layout
    ahead = max(0, placement.ahead - 1) * layout.largest_unit if placement.streams else 0
    one = duration(turn.trace, layout, placement, rates)
    arrival = 0.0 if placement.stays else whole_copy(layout.resident_bytes, rates)
    return Choice(
        turn,
        {**option.changes, **({"fp8_storage": True} if placement.fp8 else {})},
        stage.peak_allocated_bytes + ahead,
        arrival + turn.calls * one.seconds,
        layout.resident_bytes + turn.calls * one.moved,
        option.loses or placement.fp8,
        how,
    )


def _remedies(worst: Choice | None, smallest: int, limits: Limits) -> tuple[str, ...]:
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


def _beyond(prediction: Prediction, limits: Limits) -> tuple[str, ...]:
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

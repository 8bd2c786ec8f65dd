"""Chooses for components that take turns on the device, each making room for the next.

While one works, only what was chosen to stay is beside it: encoders that the negative prompt needs
once more, or whole components from run to run, where the budget leaves room. Pure, as ``planner``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .planner import Choice, Limits, Option, Plan, choose
from .predict import ENCODE, Prediction, Turn, predict
from .schedule import Rates

_TRIES = 5


@dataclass(frozen=True)
class TurnsPlan:
    """What each component does in its turn, by name; empty where nothing fits.

    Attributes:
        waits: components that stay beside each other as long as prompts are encoded.
        stays: components that stay from run to run.
        smallest_budget, advice: as ``Plan`` has them.
    """

    choices: Mapping[str, Choice]
    waits: frozenset[str]
    stays: frozenset[str]
    prediction: Prediction | None
    smallest_budget: int
    advice: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether there is a plan."""
        return self.prediction is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = Plan(
            self.fits,
            tuple(self.choices.values()),
            self.prediction,
            self.smallest_budget,
            self.advice,
        ).to_dict()
        for name, choice in found["choices"].items():
            choice["stays"] = name in self.stays
        return found


def choose_turns(
    run: Sequence[Turn],
    components: Mapping[str, Sequence[Option]],
    limits: Limits,
    rates: Rates,
    *,
    workspace_factor: float = 1.0,
    context_bytes: int = 0,
) -> TurnsPlan:
    """The fastest plan within ``limits``.

    Args:
        run: every turn of a run, in order, as it is with everything resident.
        components: what each of them may do; a turn of theirs has the calls of the whole run.
    """
    costs: dict[str, Any] = {"workspace_factor": workspace_factor, "context_bytes": context_bytes}
    spare = 0
    for _ in range(_TRIES):
        found = _chosen(run, components, limits, spare, rates, costs)
        if found.prediction is None or limits.holds(found.prediction.peak_allocated):
            return found
        # In a row they meet each other's blocks, which may be larger than what is put in them.
        room = limits.room or 0
        spare += found.prediction.peak_allocated - room + room // 100
    assert found.prediction is not None
    least = max(found.smallest_budget, limits.smallest(found.prediction.peak_allocated))
    return TurnsPlan({}, frozenset(), frozenset(), None, least, found.advice)


def _chosen(
    run: Sequence[Turn],
    components: Mapping[str, Sequence[Option]],
    limits: Limits,
    spare: int,
    rates: Rates,
    costs: dict[str, Any],
) -> TurnsPlan:
    """The plan with ``spare`` bytes kept free; its prediction may still be too large."""

    def alone(name: str, beside: int) -> Plan:
        return choose([components[name]], limits.without(beside + spare), rates, **costs)

    found = {name: alone(name, 0) for name in components}
    smallest = max(plan.smallest_budget for plan in found.values())
    advice = tuple(
        line
        for plan in found.values()
        if not plan.fits and plan.smallest_budget == smallest
        for line in plan.advice
    )
    missing = [name for name, plan in found.items() if not plan.fits]
    if missing:
        advice = advice or found[missing[0]].advice
        return TurnsPlan({}, frozenset(), frozenset(), None, smallest + spare, advice)
    waits = _waiting(run, found, alone)
    choices = {name: plan.choices[0] for name, plan in found.items()}
    stays = _staying(choices, waits, limits.without(spare))
    for waiting, staying in _fewer(waits, stays, choices):
        turns = [_turn(turn, choices, waiting, staying, run) for turn in run]
        prediction = predict(turns, rates=rates, **costs)
        if limits.holds(prediction.peak_allocated):
            break
    return TurnsPlan(choices, waiting, staying, prediction, smallest)


def _fewer(
    waits: frozenset[str], stays: frozenset[str], choices: dict[str, Choice]
) -> Iterator[tuple[frozenset[str], frozenset[str]]]:
    """Both as they are, then less and less that stays: blocks are larger than what is in them."""
    by_size = sorted(stays, key=lambda name: choices[name].turn.layout.resident_bytes)
    for count in range(len(by_size) + 1):
        yield waits, frozenset(by_size[count:])
    yield frozenset(), frozenset()


def _waiting(run: Sequence[Turn], found: dict[str, Plan], alone: Any) -> frozenset[str]:
    """Encoders that are needed twice and may stay in between; the others are chosen anew."""
    order = [turn.name for turn in run if turn.stage == ENCODE]
    encoders = {name for name in order if order.count(name) > 1}
    if len(set(order)) < 2 or not encoders:
        return frozenset()
    held: dict[str, int] = {}
    for name in sorted(encoders, key=lambda name: -_weights(found[name])):
        if found[name].choices[0].how != "resident":
            continue
        trial = {**held, name: _weights(found[name])}
        plans = {
            other: alone(other, sum(size for one, size in trial.items() if one != other))
            for other in dict.fromkeys(order)
        }
        kept = all(plans[one].fits and plans[one].choices[0].how == "resident" for one in trial)
        if kept and all(plan.fits for plan in plans.values()):
            held = trial
            found.update(plans)
    return frozenset(held)


def _weights(plan: Plan) -> int:
    return plan.choices[0].turn.layout.resident_bytes


def _staying(choices: dict[str, Choice], waits: frozenset[str], limits: Limits) -> frozenset[str]:
    """Whole components that may stay from run to run beside every other one, largest first."""
    sizes = {
        name: choice.turn.layout.resident_bytes
        for name, choice in choices.items()
        if choice.how == "resident" and choice.turn.resting is None
    }
    peaks = {name: choice.peak for name, choice in choices.items()}
    for name in waits:
        peaks = {
            other: peak + (sizes[name] if _encodes(choices[other]) and other != name else 0)
            for other, peak in peaks.items()
        }
    stays: set[str] = set()
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        trial = {*stays, name}
        beside = {
            other: peak
            + sum(
                sizes[one]
                for one in trial
                if one != other and not (one in waits and _encodes(choices[other]))
            )
            for other, peak in peaks.items()
        }
        if all(limits.holds(peak) for peak in beside.values()):
            stays = trial
    return frozenset(stays)


def _encodes(choice: Choice) -> bool:
    return choice.turn.stage == ENCODE


def _turn(
    turn: Turn,
    choices: dict[str, Choice],
    waits: frozenset[str],
    stays: frozenset[str],
    run: Sequence[Turn],
) -> Turn:
    chosen = choices[turn.name].turn
    later = turn.name in waits or _only_encoder(turn, run)
    return replace(
        turn,
        trace=chosen.trace,
        placement=replace(chosen.placement, stays=turn.name in stays),
        calls=_calls(turn, chosen, run),
        resting=None,
        after=None,
        lingers=(later or turn.stage != ENCODE) and turn.name not in stays,
        alone=turn.stage != ENCODE,
    )


def _only_encoder(turn: Turn, run: Sequence[Turn]) -> bool:
    return {one.name for one in run if one.stage == ENCODE} == {turn.name}


def _calls(turn: Turn, chosen: Turn, run: Sequence[Turn]) -> int:
    """Of one turn: ``chosen`` has those of all the component's turns."""
    turns = sum(one.name == turn.name for one in run)
    return max(1, chosen.calls // turns)

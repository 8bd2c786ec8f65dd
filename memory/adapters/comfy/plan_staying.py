"""What comes to the device in each turn of a prompt that follows its like, under a budget.

As ``staying`` does it: what was there for one turn stays, and gives way, smallest layers first, as
far as another one needs the room.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ...levels import MemoryOptimizationConfig
from ...planner.loader import without
from ...planner.predict import STAGES, Turn
from .measured import SLACK
from .plan_budget import peak_of
from .shares import policy, stays_under
from .staying import soon

_PROMPTS = 4
"""After so many each is like the one before."""


def settled(
    turns: Sequence[Turn], config: MemoryOptimizationConfig, factor: float
) -> Sequence[Turn]:
    """``turns`` with the bytes that ``arrive`` for each, where ``config`` has models stay.

    Args:
        factor: of workspaces, see ``Replay``.
    """
    budget = config.budget_bytes
    if budget is None or not stays_under(config) or policy(config) == "always":
        return turns
    needs = [_need(turn, budget, factor) for turn in turns]
    there: dict[str, _Kept] = {}
    arrive = [0] * len(turns)
    for _ in range(_PROMPTS):
        for place, turn in enumerate(turns):
            before = there.pop(turn.name, _Kept(turn, frozenset()))
            now = _Kept(turn, frozenset() if turn.on_host else frozenset(turn.layout.resident))
            _give_way(there, turn, needs[place] - budget)
            arrive[place] = now.bytes_of(now.resident - before.resident)
            there[turn.name] = now
    return [replace(turn, arrive=nbytes) for turn, nbytes in zip(turns, arrive, strict=True)]


@dataclass(frozen=True)
class _Kept:
    """A component whose ``resident`` weights are on the device, by their indices."""

    turn: Turn
    resident: frozenset[int]

    def bytes_of(self, weights: Iterable[int]) -> int:
        return sum(self.turn.layout.stored[index] for index in weights)

    def without(self, surplus: int) -> _Kept:
        stored = self.turn.layout.stored
        return replace(self, resident=without(self.turn.trace, stored, self.resident, surplus))


def _give_way(there: dict[str, _Kept], turn: Turn, missing: int) -> None:
    """Take off what is missing for a turn besides all that is there: see ``staying.soon``."""
    now = STAGES.index(turn.stage)
    order = sorted(there.items(), key=lambda one: soon(now, STAGES.index(one[1].turn.stage)))
    missing += sum(kept.bytes_of(kept.resident) for kept in there.values())
    for name, kept in order:
        there[name] = kept.without(missing)
        missing -= kept.bytes_of(kept.resident - there[name].resident)


def _need(turn: Turn, budget: int, factor: float) -> int:
    """Bytes it has to have: all of the budget where it streams."""
    if turn.on_host or len(turn.layout.resident) < len(turn.layout.stored):
        return budget
    return peak_of(turn, factor) + SLACK

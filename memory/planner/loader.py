"""Which leaves ComfyUI's loader keeps on the device under a limit, and what it streams.

Largest leaves first, each if it fits beside those before it. Newer cores keep something of the
limit for the leaves they stream. ``limits`` asks the core for as much as keeps what is resident
under a cap; here the same is foreseen from a trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .allocator import ROUNDING
from .trace import Trace


@dataclass(frozen=True)
class Loader:
    """How the core at hand streams.

    Attributes:
        streams: copy streams, each with a buffer that stays; 0 = a leaf's weights have memory of
            their own while it computes.
        reserves: whether part of the limit is kept for what is streamed.
        holds: whether what was streamed stays until its leaf has computed, although it was cast.
    """

    streams: int = 0
    reserves: bool = False
    holds: bool = True


@dataclass(frozen=True, order=True)
class _Leaf:
    """Ordered as the core loads: by bytes, ties by name."""

    nbytes: int
    name: str
    weights: tuple[int, ...]


def kept(trace: Trace, stored: Sequence[int], cap: int, loader: Loader) -> frozenset[int]:
    """Indices of the weights on the device for the whole turn, ``cap`` bytes of them at most.

    Args:
        stored: bytes of each weight as it is stored, by index.
    """
    leaves = _leaves(trace, stored)
    total = sum(leaf.nbytes for leaf in leaves)
    if cap >= total:
        return frozenset(index for leaf in leaves for index in leaf.weights)
    cap = max(0, cap - padding(stored))
    limit = _limit(leaves, cap, total, loader)
    return frozenset(index for leaf in _loaded(leaves, limit, loader) for index in leaf.weights)


def padding(stored: Sequence[int]) -> int:
    """Bytes that rounding each weight up to the allocator's blocks adds."""
    return sum(-size % ROUNDING for size in stored)


def without(
    trace: Trace, stored: Sequence[int], resident: frozenset[int], surplus: int
) -> frozenset[int]:
    """``resident`` after ``surplus`` bytes have left the device: the smallest leaves first."""
    left = set(resident)
    for leaf in reversed(_leaves(trace, stored)):
        if surplus <= 0:
            break
        if left.issuperset(leaf.weights):
            left.difference_update(leaf.weights)
            surplus -= leaf.nbytes
    return frozenset(left)


def _leaves(trace: Trace, stored: Sequence[int]) -> list[_Leaf]:
    owned: dict[int, list[int]] = {}
    for index, weight in enumerate(trace.weights):
        owned.setdefault(weight.owner, []).append(index)
    found = [
        _Leaf(sum(stored[index] for index in weights), trace.modules[owner][0], tuple(weights))
        for owner, weights in owned.items()
    ]
    return sorted(found, reverse=True)


def _limit(leaves: list[_Leaf], cap: int, total: int, loader: Loader) -> int:
    """The largest limit that keeps at most ``cap`` bytes resident."""
    if not loader.reserves or cap <= 0:
        return cap
    most = sum(leaf.nbytes for leaf in leaves[: loader.streams + 1])
    low, high = cap, cap + total + most
    while low < high:
        middle = (low + high + 1) // 2
        if sum(leaf.nbytes for leaf in _loaded(leaves, middle, loader)) <= cap:
            low = middle
        else:
            high = middle - 1
    return min(low, total)


def _loaded(leaves: list[_Leaf], limit: int, loader: Loader) -> list[_Leaf]:
    found: list[_Leaf] = []
    resident = reserve = 0
    for place, leaf in enumerate(leaves):
        needed = 0
        if loader.reserves:
            ahead = sum(one.nbytes for one in leaves[place + 1 : place + 1 + loader.streams])
            needed = max(reserve, leaf.nbytes + ahead)
        if resident + leaf.nbytes + needed < limit:
            resident += leaf.nbytes
            found.append(leaf)
        else:
            reserve = needed
    return found

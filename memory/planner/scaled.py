"""A trace of any number of images from the traces of two: what depends on their number is in a
straight line. Pure: no model is run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .trace import Operation, Trace


def scaled(one: Trace, other: Trace, batches: tuple[int, int], batch: int) -> Trace | None:
    """The trace of ``batch`` images; ``None`` where the two do not differ in amounts only.

    Args:
        batches: images of ``one`` and of ``other``, two different numbers.
    """
    if not _alike(one, other):
        return None
    first, second = batches
    try:
        return replace(
            one,
            storages=tuple(
                _between(a, b, first, second, batch)
                for a, b in zip(one.storages, other.storages, strict=True)
            ),
            operations=tuple(
                _operation(a, b, first, second, batch)
                for a, b in zip(one.operations, other.operations, strict=True)
            ),
        )
    except ValueError:
        return None


def _alike(one: Trace, other: Trace) -> bool:
    same = all(
        getattr(one, name) == getattr(other, name)
        for name in ("modules", "weights", "inputs", "events", "outputs")
    )
    if not same or len(one.storages) != len(other.storages):
        return False
    return [_fixed(it) for it in one.operations] == [_fixed(it) for it in other.operations]


def _fixed(operation: Operation) -> tuple[object, ...]:
    return operation.name, operation.module, operation.weights, operation.wide


def _operation(one: Operation, other: Operation, first: int, second: int, batch: int) -> Operation:
    amounts: dict[str, Any] = {
        name: _between(getattr(one, name), getattr(other, name), first, second, batch)
        for name in ("flops", "nbytes", "workspace", "arriving", "leaving")
    }
    return replace(one, **amounts)


def _between(one: int, other: int, first: int, second: int, batch: int) -> int:
    """On the line through two amounts.

    Raises:
        ValueError: there is no such whole number.
    """
    if one == other:
        return one
    grown, left = divmod((other - one) * (batch - first), second - first)
    if left or one + grown < 0:
        raise ValueError
    return one + grown

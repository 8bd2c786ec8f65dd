"""Traces of any batch from two: exact where amounts lie on a line, else none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lowtide.memory.planner.scaled import scaled
from lowtide.memory.planner.trace import Trace
from lowtide.tests.memory.planner.made import MIB, made


def of(batch: int, more: int = 0) -> Trace:
    """Activations and arithmetic that grow with the batch, and weights that do not."""
    return made(activation=MIB + batch * 3000, flops=more + batch * 10**6)


@pytest.mark.parametrize("batches", [(1, 2), (1, 4), (4, 1), (2, 5)])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 64])
def test_what_lies_on_a_line_is_found_exactly(batches: tuple[int, int], batch: int) -> None:
    found = scaled(*map(of, batches), batches, batch)
    assert found is not None
    wanted = of(batch)
    assert (found.storages, found.operations) == (wanted.storages, wanted.operations)
    assert (found.events, found.weights) == (wanted.events, wanted.weights)


def test_what_differs_in_more_than_amounts_is_not() -> None:
    one, other = of(1), of(2)
    for change in (
        {"events": other.events[:-1]},
        {"storages": (*other.storages, 1)},
        {"outputs": (2,)},
        {"inputs": 2},
        {"modules": other.modules[:-1]},
        {"weights": other.weights[:-1]},
        {"operations": (replace(other.operations[0], name="mm"), *other.operations[1:])},
        {"operations": other.operations[:-1]},
    ):
        assert scaled(one, replace(other, **change), (1, 2), 3) is None, change


def test_where_no_whole_number_is_on_the_line_there_is_none() -> None:
    assert scaled(of(1), of(3, more=1), (1, 3), 2) is None
    assert scaled(made(activation=4 * MIB), made(activation=MIB), (1, 2), 3) is None, (
        "below nothing"
    )

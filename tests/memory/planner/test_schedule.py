"""Two queues: what waits for what."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lowtide.memory.planner.placement import Placement, layout
from lowtide.memory.planner.schedule import (
    COPY_LATENCY,
    LAUNCH,
    Piece,
    duration,
    overlapped,
    seconds_of,
)
from lowtide.tests.memory.planner.made import MIB, made

FREE = COPY_LATENCY * 10
RATES = SimpleNamespace(h2d_pinned=4e9, h2d_pageable=1e9, flops=1e12, bandwidth=1e11)


def test_a_kernel_takes_the_longer_of_its_arithmetic_and_its_traffic():
    assert seconds_of(10**12, 0, RATES) == 1
    assert seconds_of(10**12, 0, RATES, wide=True) == 2
    assert seconds_of(0, 10**11, RATES) == 1
    assert seconds_of(1, 1, RATES) == LAUNCH


def test_without_room_ahead_copies_and_work_take_turns():
    found = overlapped([Piece(10**9, 1.0)] * 3, 1e9, None)
    assert found.seconds == pytest.approx(6, abs=FREE)
    assert found.moved == 3 * 10**9


def test_with_room_the_longer_queue_counts():
    quick = overlapped([Piece(10**9, 3.0)] * 4, 1e9, 2 * 10**9)
    assert quick.seconds == pytest.approx(12, abs=FREE)
    slow = overlapped([Piece(10**9, 0.25)] * 4, 1e9, 2 * 10**9)
    assert slow.seconds == pytest.approx(4, abs=FREE)


def test_a_copy_waits_for_the_room_of_a_unit_that_is_done():
    pieces = [Piece(2 * 10**9, 0.1), Piece(10**6, 3.0), Piece(2 * 10**9, 0.1)]
    tight = overlapped(pieces, 1e9, 2 * 10**9)
    wide = overlapped(pieces, 1e9, 8 * 10**9)
    assert wide.seconds < tight.seconds
    assert tight.seconds <= tight.copy + tight.compute


def test_a_call_of_a_trace():
    trace = made(weight=100 * MIB, flops=10**11)
    for placement, seconds in (
        (Placement(), 0.3),
        (Placement(frozenset()), 0.3 + 300 * MIB / 1e9),
        (Placement(frozenset(), pinned=True), 0.3 + 300 * MIB / 4e9),
        (Placement(frozenset(), pinned=True, ahead=1), 0.3),
        (Placement(frozenset({0, 1}), pinned=True), 0.3 + 100 * MIB / 4e9),
    ):
        found = duration(trace, layout(trace, placement), placement, RATES)
        assert found.seconds == pytest.approx(seconds, rel=0.01), placement
        assert found.moved == layout(trace, placement).streamed_bytes

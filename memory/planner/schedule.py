"""How long a call takes on a device: one queue of copies beside one queue of computation.

A roofline: every kernel takes the longer of its arithmetic and its memory traffic, and the time to
launch it. Streamed units are copied one after the other; computation waits for the unit it needs,
copies wait for the room of a unit that is done. Rates are the profile's, so that times are only as
good as those; nothing here was measured on a GPU.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Protocol

from .placement import Layout, Placement
from .trace import COMPUTED, ENTERED, Trace

LAUNCH = 8e-6
"""Seconds from one kernel to the next, where the kernel is shorter than that."""
_WIDE = 2
"""Times half precision's seconds of arithmetic in float32, on the cards profiles are listed for."""
COPY_LATENCY = 15e-6
"""Seconds a copy takes before its first byte."""


class Rates(Protocol):
    """What a device profile says of speed: bytes and operations a second."""

    @property
    def h2d_pinned(self) -> float: ...
    @property
    def h2d_pageable(self) -> float: ...
    @property
    def flops(self) -> float: ...
    @property
    def bandwidth(self) -> float: ...


@dataclass(frozen=True)
class Duration:
    """Of one call. ``seconds`` is at most the sum of the others and at least each of them.

    Attributes:
        compute, copy: seconds that either queue is busy.
        moved: bytes copied to the device.
    """

    seconds: float
    compute: float
    copy: float
    moved: int


@dataclass(frozen=True)
class Piece:
    """``nbytes`` that have to be there before ``compute`` seconds of work."""

    nbytes: int
    compute: float


def seconds_of(flops: int, nbytes: int, rates: Rates, wide: bool = False) -> float:
    """One kernel; ``wide`` ones compute in float32."""
    if wide:
        flops *= _WIDE
    return max(flops / rates.flops, nbytes / rates.bandwidth, LAUNCH)


def pieces_of(trace: Trace, layout: Layout, rates: Rates) -> list[Piece]:
    """The call as work between arrivals of streamed weights; the first piece may wait for none."""
    pieces: list[Piece] = []
    arriving, compute = 0, 0.0
    for kind, value in trace.steps():
        if kind == ENTERED:
            nbytes = layout.unit_bytes(value)
            if nbytes:
                pieces.append(Piece(arriving, compute))
                arriving, compute = nbytes, 0.0
            for weight in layout.casts.get(value, ()):
                touched = layout.stored[weight] + layout.cast[weight]
                compute += seconds_of(0, touched, rates)
        elif kind == COMPUTED:
            operation = trace.operations[value]
            compute += seconds_of(operation.flops, operation.nbytes, rates, operation.wide)
            across = operation.arriving + operation.leaving
            if across:
                compute += COPY_LATENCY + across / rates.h2d_pageable
    pieces.append(Piece(arriving, compute))
    return pieces


def duration(trace: Trace, layout: Layout, placement: Placement, rates: Rates) -> Duration:
    """One call under a placement, steady: as the second of many.

    Tensors that the call itself sends to the host and back count as computation: it waits for them.
    """
    rate = rates.h2d_pinned if placement.pinned else rates.h2d_pageable
    pieces = pieces_of(trace, layout, rates)
    room = None
    if placement.ahead:
        room = (placement.ahead + 1) * max((piece.nbytes for piece in pieces), default=0)
    found = overlapped(pieces, rate, room)
    return replace(found, moved=found.moved + trace.arriving)


def overlapped(pieces: list[Piece], rate: float, room: int | None) -> Duration:
    """Both queues over ``pieces``, twice; the second time counts.

    Args:
        rate: bytes a second of copies.
        room: bytes of streamed weights on the device at once; ``None`` = a copy begins when the
            computation before it is done, and nothing overlaps.
    """
    copy = sum(piece.nbytes / rate + COPY_LATENCY for piece in pieces if piece.nbytes)
    compute = sum(piece.compute for piece in pieces)
    moved = sum(piece.nbytes for piece in pieces)
    if room is None:
        return Duration(copy + compute, compute, copy, moved)
    ends = [0.0, 0.0]
    now = copied = 0.0
    held = 0
    here: deque[tuple[int, float]] = deque()
    """Units on the device in order: bytes, and when their work is done."""
    for turn in range(2):
        for piece in pieces:
            ready = 0.0
            if piece.nbytes:
                start = copied
                while here and held + piece.nbytes > room:
                    nbytes, done = here.popleft()
                    held -= nbytes
                    start = max(start, done)
                copied = start + COPY_LATENCY + piece.nbytes / rate
                ready = copied
            now = max(now, ready) + piece.compute
            if piece.nbytes:
                held += piece.nbytes
                here.append((piece.nbytes, now))
        ends[turn] = now
    return Duration(max(ends[1] - ends[0], compute), compute, copy, moved)


def moved_by(trace: Trace, layout: Layout) -> int:
    """Bytes one call copies to the device, resident weights left out."""
    weights = sum(layout.unit_bytes(value) for value in trace.entered) if layout.units else 0
    return weights + trace.arriving


def whole_copy(nbytes: int, rates: Rates, pinned: bool = False) -> float:
    """Seconds to bring ``nbytes`` to the device at once."""
    return nbytes / (rates.h2d_pinned if pinned else rates.h2d_pageable) if nbytes else 0.0

"""A run's peaks by stage: its components' turns replayed one after the other on one allocator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .placement import EVERYTHING, Layout, Placement, layout
from .replay import Peak, Replay
from .schedule import Duration, Rates, duration, moved_by, whole_copy
from .trace import Trace

ENCODE, DENOISE, DECODE = "encode", "denoise", "decode"
STAGES = (ENCODE, DENOISE, DECODE)
_ON_HOST = 50
"""Times a device's seconds of computing that a host takes: an order of magnitude, not measured."""
_STEADY = 2
"""Calls replayed of many: from the second on each meets the segments of the one before."""


@dataclass(frozen=True)
class Turn:
    """A component at work.

    Attributes:
        name: of the component.
        stage: one of ``STAGES``.
        calls: how often it runs.
        beside: bytes of tensors the pipeline holds meanwhile besides the call's inputs.
        resting: bytes of its weights on the device between turns, where they stay;
            ``None`` = as in the turn.
        after: the component that leaves the device when this one comes, and the cache with it.
        lingers: whether it stays until another turn names it in ``after``, or needs to be alone.
        alone: whether those that linger leave before it comes.
        empties: whether the allocator's cache is given back once the component has left.
        on_host: whether it computes in host memory, and nothing of it comes to the device.
        arrive: bytes of its resident weights that come to the device for it;
            ``None`` = all of them, unless they are there.
    """

    name: str
    stage: str
    trace: Trace
    placement: Placement = EVERYTHING
    calls: int = 1
    beside: int = 0
    resting: int | None = None
    after: str | None = None
    lingers: bool = False
    alone: bool = False
    empties: bool = False
    on_host: bool = False
    arrive: int | None = None

    @property
    def layout(self) -> Layout:
        """Its placement worked out."""
        return layout(self.trace, self.placement)


@dataclass(frozen=True)
class StagePrediction:
    """Peaks in bytes, with what causes them; seconds and bytes moved of the whole stage."""

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    seconds: float | None
    moved_bytes: int
    component: str
    operation: str
    module: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Prediction:
    """Of a run; ``context_bytes`` is what the device's driver takes for the process.

    Attributes:
        host_bytes: weights that wait in host memory, those that are page-locked among them.
    """

    stages: dict[str, StagePrediction]
    context_bytes: int
    host_bytes: int
    pinned_bytes: int

    @property
    def peak_allocated(self) -> int:
        """Most bytes allocated in any stage."""
        return max((s.peak_allocated_bytes for s in self.stages.values()), default=0)

    @property
    def peak_reserved(self) -> int:
        """Most bytes reserved."""
        return max((s.peak_reserved_bytes for s in self.stages.values()), default=0)

    @property
    def device_peak(self) -> int:
        """Most bytes of the device in use, as its driver counts: reserved, and the context."""
        return self.peak_reserved + self.context_bytes

    @property
    def seconds(self) -> float | None:
        """Of the whole run; ``None`` without a profile."""
        times = [stage.seconds for stage in self.stages.values()]
        return None if None in times else sum(time for time in times if time is not None)

    @property
    def moved_bytes(self) -> int:
        """Copied to the device."""
        return sum(stage.moved_bytes for stage in self.stages.values())

    @property
    def worst(self) -> str:
        """The stage of the peak."""
        return max(self.stages, key=lambda name: self.stages[name].peak_allocated_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; bytes and seconds."""
        return {
            "predicted": True,
            "stages": {name: stage.to_dict() for name, stage in self.stages.items()},
            "peak_allocated_bytes": self.peak_allocated,
            "peak_reserved_bytes": self.peak_reserved,
            "device_peak_bytes": self.device_peak,
            "context_bytes": self.context_bytes,
            "host_bytes": self.host_bytes,
            "pinned_bytes": self.pinned_bytes,
            "seconds": self.seconds,
            "moved_bytes": self.moved_bytes,
            "worst_stage": self.worst if self.stages else None,
        }


def predict(
    turns: Sequence[Turn],
    *,
    rates: Rates | None = None,
    workspace_factor: float = 1.0,
    context_bytes: int = 0,
) -> Prediction:
    """Replay ``turns`` in order. Components whose placement ``stays`` are there all the time.

    Args:
        rates: of the device, for the seconds; ``None`` = memory only.
        workspace_factor: as ``Replay`` takes it.
    """
    run = _Run(Replay(workspace_factor=workspace_factor))
    for turn in turns:
        if turn.placement.stays:
            run.place(turn)
    found: dict[str, list[_Taken]] = {}
    for turn in turns:
        found.setdefault(turn.stage, []).append(run.take(turn))
    stages = {name: _stage(found[name], rates) for name in (*STAGES, *found) if name in found}
    host, pinned = _on_host(turns)
    return Prediction(stages, context_bytes, host, pinned)


@dataclass(frozen=True)
class _Taken:
    """A turn, its peak, and the bytes of resident weights that came to the device for it."""

    turn: Turn
    peak: Peak
    arrived: int


class _Run:
    """What is on the device from one turn to the next: handles of weights, by component."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.there: dict[str, dict[int, int]] = {}
        self.staying: set[str] = set()

    def place(self, turn: Turn) -> None:
        """Put a component there, as it rests between its turns."""
        if turn.name not in self.there:
            self.staying.add(turn.name)
            self.there[turn.name] = {
                index: self.replay.allocator.malloc(size) for index, size in _resting(turn).items()
            }

    def clear(self, name: str) -> str:
        """Have all leave that linger, but ``name``; the last of them, or nothing."""
        leaving = [one for one in self.there if one != name and one not in self.staying]
        for other in leaving:
            self.replay.drop(self.there.pop(other))
        return leaving[-1] if leaving else ""

    def take(self, turn: Turn) -> _Taken:
        """One turn."""
        replay = self.replay
        if turn.on_host:
            there = replay.allocator.allocated, replay.allocator.reserved
            return _Taken(turn, Peak(*there, "computing on the host", ""), 0)
        before = replay.allocator.allocated, replay.allocator.reserved
        leaving = ""
        if turn.after in self.there:
            leaving = turn.after or ""
            replay.drop(self.there.pop(leaving))
            replay.allocator.empty_cache()
        if turn.alone:
            leaving = self.clear(turn.name) or leaving
        beside = replay.allocator.malloc(turn.beside)
        stored = {index: turn.layout.stored[index] for index in turn.layout.resident}
        held = self.there.get(turn.name)
        arrived = turn.layout.resident_bytes if held is None else 0
        if held is None:
            held = replay.hold(turn.layout)
        elif turn.resting is not None:
            self._convert(held, stored)
        peaks = [
            replay.call(turn.trace, turn.layout, held) for _ in range(min(turn.calls, _STEADY))
        ]
        if turn.placement.stays and turn.resting is not None:
            self._convert(held, _resting(turn))
        elif turn.lingers:
            self.there[turn.name] = held
        elif not turn.placement.stays:
            replay.drop(held)
        replay.allocator.release(beside)
        if turn.empties and turn.name not in self.there:
            replay.allocator.empty_cache()
        if leaving:  # the stage has begun when the one before leaves
            peaks.append(Peak(*before, "weights leaving", leaving))
        peak = max(peaks, key=lambda peak: (peak.allocated, peak.reserved))
        return _Taken(turn, peak, arrived if turn.arrive is None else turn.arrive)

    def _convert(self, held: dict[int, int], sizes: dict[int, int]) -> None:
        """Weight by weight to another type, each beside the one it replaces."""
        for index, size in sizes.items():
            old = held[index]
            held[index] = self.replay.allocator.malloc(size)
            self.replay.allocator.release(old)


def _resting(turn: Turn) -> dict[int, int]:
    """Bytes of each resident weight between turns."""
    stored = {index: turn.layout.stored[index] for index in turn.layout.resident}
    if turn.resting is None:
        return stored
    whole = max(1, sum(stored.values()))
    return {index: size * turn.resting // whole for index, size in stored.items()}


def _stage(taken: list[_Taken], rates: Rates | None) -> StagePrediction:
    worst = max(taken, key=lambda one: one.peak.allocated)
    seconds = 0.0
    moved = 0
    for one in taken:
        turn = one.turn
        if turn.on_host:
            if rates is not None:
                seconds += turn.calls * _ON_HOST * duration_of(turn, rates).compute
            continue
        moved += one.arrived + turn.calls * moved_by(turn.trace, turn.layout)
        if rates is not None:
            call = duration_of(turn, rates)
            arrival = whole_copy(one.arrived, rates, turn.placement.pinned)
            seconds += arrival + turn.calls * call.seconds
    return StagePrediction(
        worst.peak.allocated,
        max(one.peak.reserved for one in taken),
        None if rates is None else seconds,
        moved,
        worst.turn.name,
        worst.peak.operation,
        worst.peak.module,
    )


def duration_of(turn: Turn, rates: Rates) -> Duration:
    """Of one call of a turn."""
    return duration(turn.trace, turn.layout, turn.placement, rates)


def _on_host(turns: Sequence[Turn]) -> tuple[int, int]:
    """Bytes of weights that wait on the host, and page-locked; each component once."""
    host = pinned = 0
    seen: set[str] = set()
    for turn in turns:
        if turn.name in seen:
            continue
        seen.add(turn.name)
        if turn.placement.keeps_originals:
            host += turn.layout.original_bytes
        if turn.placement.stays:
            continue
        streamed = turn.layout.streamed_bytes
        host += streamed + turn.layout.resident_bytes
        pinned += streamed if turn.placement.pinned else 0
    return host, pinned

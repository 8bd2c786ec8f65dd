"""The fastest of several plans that fits, by their predictions and by what past runs taught.

Pure: what it is given is all it knows. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .errors import ConfigError
from .history_rows import FITS, OUT_OF_MEMORY, Key
from .units import format_bytes

MARGIN = 0.05
"""Part of a predicted peak kept free while nothing was measured: what the allocator's blocks were
seen to differ from a prediction by."""


class Learned(Protocol):
    """What is asked of a history; see :class:`lowtide.memory.history.History`."""

    def correction(self, key: Key, stage: str, *, of: str = "bytes") -> float: ...

    def margin(self, key: Key, stage: str, before: float = MARGIN) -> float: ...

    def outcome(
        self, key: Key, level: str, *, free: int | None = None, stage: str | None = None
    ) -> str | None: ...


@dataclass(frozen=True)
class Stage:
    """What one stage of a plan is predicted to need, before any correction.

    Attributes:
        peak: highest bytes. seconds: wall time; ``None`` where it is not predicted.
        margin: part of ``peak`` to keep free while nothing was measured.
    """

    key: Key
    stage: str
    peak: int
    seconds: float | None = None
    margin: float = MARGIN


@dataclass(frozen=True)
class Prediction:
    """A plan, by its level, and what each of its stages needs; they run one after the other."""

    level: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Choice:
    """The plan chosen, and what was made of its prediction.

    Attributes:
        peak: bytes, corrected, without the margin. needed: with it.
        seconds: corrected; ``None`` where it is not predicted.
        fits: whether it fits; where nothing does, the plan that needs least is chosen.
        reason: why, one sentence.
    """

    prediction: Prediction
    peak: int
    needed: int
    seconds: float | None
    fits: bool
    reason: str


@dataclass(frozen=True)
class _Judged:
    prediction: Prediction
    peak: int
    needed: int
    seconds: float | None
    said: str | None

    def fits(self, free: int) -> bool:
        """What ran is better proof than what is predicted, and needs no margin."""
        return self.said != OUT_OF_MEMORY and (
            self.needed <= free or (self.said == FITS and self.peak <= free)
        )


def fastest_that_fits(
    predictions: Sequence[Prediction], free: int, history: Learned | None = None
) -> Choice:
    """The fastest plan whose corrected peak, with its margin, fits into ``free`` bytes.

    A level that ran out of memory at this size or a smaller one is passed over until clearly more
    is free. Where a plan has no time predicted, the order they are given in decides: put the
    fastest first.

    Args:
        free: what the process may use of the device in all: free, or held by itself.

    Raises:
        ConfigError: no plan is given, or one without stages.
    """
    if not predictions or any(not it.stages for it in predictions):
        raise ConfigError("there is no plan to choose from; give at least one, with its stages")
    judged = [_judge(it, free, history) for it in predictions]
    fitting = [it for it in judged if it.fits(free)]
    if not fitting:
        least = min(judged, key=lambda it: (it.said == OUT_OF_MEMORY, it.needed))
        return _choice(least, False, _why_not(least, free))
    if all(it.seconds is not None for it in fitting):
        best = min(fitting, key=lambda it: it.seconds or 0.0)
    else:
        best = fitting[0]
    passed = [it.prediction.level for it in judged if it.said == OUT_OF_MEMORY]
    reason = (
        f"{best.prediction.level} is the fastest plan that fits: {format_bytes(best.peak)} at the "
        f"peak, {format_bytes(free)} to use"
    )
    if passed:
        reason += f"; {', '.join(dict.fromkeys(passed))} ran out of memory at this size before"
    return _choice(best, True, reason)


def _judge(prediction: Prediction, free: int, history: Learned | None) -> _Judged:
    peaks, needed, seconds, said = [], [], [], []
    for stage in prediction.stages:
        key, name = stage.key, stage.stage
        by = 1.0 if history is None else history.correction(key, name)
        margin = stage.margin if history is None else history.margin(key, name, stage.margin)
        peaks.append(int(stage.peak * by))
        needed.append(int(stage.peak * by * (1 + margin)))
        if stage.seconds is not None:
            slower = 1.0 if history is None else history.correction(key, name, of="seconds")
            seconds.append(stage.seconds * slower)
        if history is not None:
            said.append(history.outcome(key, prediction.level, free=free, stage=name))
    verdict = None
    if OUT_OF_MEMORY in said:
        verdict = OUT_OF_MEMORY
    elif said and all(it == FITS for it in said):
        verdict = FITS
    whole = len(seconds) == len(prediction.stages)
    return _Judged(prediction, max(peaks), max(needed), sum(seconds) if whole else None, verdict)


def _why_not(least: _Judged, free: int) -> str:
    level = least.prediction.level
    if least.said == OUT_OF_MEMORY:
        return (
            f"no plan fits: every one ran out of memory at this size before, or needs more than "
            f"the {format_bytes(free)} there are to use; {level} needs least. Free memory, or make "
            f"fewer or smaller images"
        )
    return (
        f"no plan fits: {level} needs least, {format_bytes(least.needed)} with its margin, and "
        f"{format_bytes(free)} are there to use, {format_bytes(least.needed - free)} too little. "
        f"Free that much, or make fewer or smaller images"
    )


def _choice(judged: _Judged, fits: bool, reason: str) -> Choice:
    return Choice(judged.prediction, judged.peak, judged.needed, judged.seconds, fits, reason)

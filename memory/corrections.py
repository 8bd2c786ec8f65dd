"""What past runs say about the next: by how much predictions are off, and what did not fit.

Pure functions of rows; nothing is read or kept here. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from .history_rows import FITS, OUT_OF_MEMORY, Row

RECENT = 20
"""Runs that count; older ones may have had another driver, or another pack beside them."""

DOUBT = 2.0
"""Runs' worth of weight for what was believed before: with as many runs, half is believed."""

LIMIT = 8.0
"""The most a correction may multiply or divide by: beyond it something else was measured."""

LEAST_MARGIN, MOST_MARGIN = 0.01, 1.0

GROWN = 16
"""Free memory has grown once it is more by this part: less comes and goes with every program."""

Ratios = Callable[[Row], "float | None"]


def of_bytes(row: Row) -> float | None:
    """Measured by predicted peak; ``None`` where it says nothing."""
    return _ratio(row, row.measured, row.predicted)


def of_seconds(row: Row) -> float | None:
    """Measured by predicted time; ``None`` where it says nothing."""
    return _ratio(row, row.seconds, row.predicted_seconds)


def correction(exact: Sequence[Row], like: Sequence[Row], ratio: Ratios = of_bytes) -> float:
    """What to multiply a prediction by.

    The median of the ratios of ``exact``, the runs of the same key, drawn towards that of
    ``like``, the same model's other runs, and that one towards 1: the fewer there are, the more.
    In logarithms, so that half and double are equally far off.
    """
    believed = 0.0
    for rows in (like, exact):
        found = _logs(rows, ratio)
        if found:
            weight = len(found) / (len(found) + DOUBT)
            believed += weight * (median(found) - believed)
    limit = math.log(LIMIT)
    return math.exp(max(-limit, min(limit, believed)))


def margin(exact: Sequence[Row], like: Sequence[Row], before: float) -> float:
    """What part of a corrected prediction to keep free beside it.

    The furthest a run of the key lay above the correction, one odd run in ten left out, drawn
    towards ``before``, which is believed where nothing was measured.
    """
    found = sorted((value for value in _logs(exact, of_bytes)), reverse=True)
    if not found:
        return before
    centre = math.log(correction(exact, like))
    furthest = math.exp(found[min(len(found) // 10, len(found) - 1)] - centre) - 1
    weight = len(found) / (len(found) + DOUBT)
    drawn = before + weight * (max(0.0, furthest) - before)
    return max(LEAST_MARGIN, min(MOST_MARGIN, drawn))


def grown(free: int | None, then: int | None) -> bool:
    """Whether clearly more memory is free now than ``then``; not where either is unknown."""
    return free is not None and then is not None and free > then + then // GROWN


def verdict(rows: Sequence[Row], size: int, free: int | None) -> str | None:
    """``fits``, ``out of memory``, or ``None`` for not known, by a level's rows, latest first.

    A run that ran out speaks for its own size and larger ones, until more memory is free; one
    that fitted for its own size and smaller ones, unless less is free. The latest that speaks
    counts, stage by stage; one stage that runs out is enough.
    """
    said: dict[str, str] = {}
    for row in rows:
        if row.stage in said:
            continue
        ran_out = row.outcome == OUT_OF_MEMORY and row.key.size <= size
        fitted = row.outcome == FITS and row.key.size >= size
        if (ran_out and not grown(free, row.free)) or (fitted and not grown(row.free, free)):
            said[row.stage] = row.outcome
    if OUT_OF_MEMORY in said.values():
        return OUT_OF_MEMORY
    return FITS if said else None


def _ratio(row: Row, measured: float | None, predicted: float | None) -> float | None:
    if row.outcome != FITS or not measured or not predicted or min(measured, predicted) <= 0:
        return None
    return measured / predicted


def _logs(rows: Sequence[Row], ratio: Ratios) -> list[float]:
    found = [ratio(row) for row in rows]
    return [math.log(value) for value in found if value is not None]

"""A series of readings over time in a bounded number of rows, whatever its length.

When it is full, neighbours are joined to their highest readings and the time between two rows
doubles: peaks stay visible, however long the series goes on.
"""

from __future__ import annotations

import threading

ROWS = 600
"""Most rows kept of one series."""

Row = tuple[float, "int | None", "int | None", "int | None"]
"""Seconds from the start, bytes allocated, reserved, and used of the whole device."""


class Series:
    """Readings of one run. Written by one thread, read by any."""

    def __init__(self, most: int = ROWS) -> None:
        self._most = max(2, most - most % 2)
        self._lock = threading.Lock()
        self._rows: list[Row] = []
        self._stride = 1
        self._pending: list[Row] = []

    def add(self, row: Row) -> None:
        """Take in one reading, later than those before it."""
        with self._lock:
            self._pending.append(row)
            if len(self._pending) < self._stride:
                return
            self._rows.append(_highest(self._pending))
            self._pending = []
            if len(self._rows) == self._most:
                self._rows = _joined(self._rows)
                self._stride *= 2

    def rows(self) -> list[Row]:
        """The rows so far, at most as many as may be kept; the last reading is among them."""
        with self._lock:
            rows = list(self._rows)
            if self._pending:
                rows.append(_highest(self._pending))
            return rows


def _joined(rows: list[Row]) -> list[Row]:
    """Each two neighbours as one."""
    return [_highest(rows[at : at + 2]) for at in range(0, len(rows), 2)]


def _highest(rows: list[Row]) -> Row:
    """One row for several: the time of the first, the highest known reading of each kind."""
    known = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
    highest = [max(column, default=None) for column in known[1:]]
    return rows[0][0], highest[0], highest[1], highest[2]

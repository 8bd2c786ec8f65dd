"""Whether a sample says anything that the last one sent did not: a page at rest is left alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ....units import MIB

HOST_STEP = 48 * MIB
"""Changes of host memory below this are no news: other programs take and give some all the time,
and the chip shows tenths of a GB."""
QUIET_SECONDS = 30.0
"""A sample is sent after this time in any case."""


class News:
    """Remembers the last sample that was sent.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sent: Mapping[str, Any] | None = None
        self._at = 0.0

    def is_in(self, sample: Mapping[str, Any]) -> bool:
        """Whether to send it: while a prompt runs always, else if a figure has moved, or seldom."""
        last = self._sent
        if last is None or sample["running"] or last["running"]:
            return True
        if self._clock() - self._at >= QUIET_SECONDS or sample["devices"] != last["devices"]:
            return True
        return any(_far(value, last["host"].get(name)) for name, value in sample["host"].items())

    def forget(self) -> None:
        """Somebody came who has not seen the last one: the next is news."""
        self._sent = None

    def sent(self, sample: Mapping[str, Any]) -> None:
        """It was sent."""
        self._sent, self._at = sample, self._clock()


def _far(value: int | None, before: int | None) -> bool:
    if value is None or before is None:
        return value is not before
    return abs(value - before) >= HOST_STEP

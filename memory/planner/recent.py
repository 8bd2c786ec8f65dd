"""Predictions this process has met lately: what comes again costs no replay.

Plain values, bounded in number; nothing here refers to a model. Safe to use from any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

from .predict import Prediction

T = TypeVar("T")

MOST_PREDICTIONS = 256


class Recent(Generic[T]):
    """The values used last, by key."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._held: OrderedDict[str, T] = OrderedDict()

    def get(self, key: str) -> T | None:
        """The value, which counts as used now."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: str, value: T) -> None:
        """Keep a value; the one used longest ago goes."""
        with self._lock:
            self._held[key] = value
            self._held.move_to_end(key)
            while len(self._held) > self._most:
                self._held.popitem(last=False)

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._held.clear()


predictions: Recent[Prediction] = Recent(MOST_PREDICTIONS)

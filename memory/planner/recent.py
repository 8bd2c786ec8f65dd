"""Traces and predictions this process has met lately: what comes again costs no disk and no replay.

Plain values, bounded in number; nothing here refers to a model. Safe to use from any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from .cache import TraceCache
from .predict import Prediction
from .trace import Trace, key_of

T = TypeVar("T")

MOST_TRACES = 16
"""A trace of a large model takes some megabytes."""
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


traces: Recent[Trace] = Recent(MOST_TRACES)
predictions: Recent[Prediction] = Recent(MOST_PREDICTIONS)


class RecentTraces(TraceCache):
    """A cache on disk with the latest traces at hand."""

    def recorded(self, question: Mapping[str, Any], record: Callable[[], Trace]) -> Trace:
        """As ``TraceCache.recorded``."""
        key = key_of(question)
        found = traces.get(key)
        if found is None:
            found = super().recorded(question, record)
            traces.put(key, found)
        return found

    def has(self, key: str) -> bool:
        """Whether the trace need not be recorded; a damaged file is found out later."""
        return traces.get(key) is not None or self._path(key).exists()

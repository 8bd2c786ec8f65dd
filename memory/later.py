"""Work that no run waits for: done on one thread of its own, one piece after the other.

No torch here.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable

from .errors import LowtideError

logger = logging.getLogger("lowtide")

MOST_WAITING = 16
"""Pieces that may wait; more are dropped, for they can be asked for again."""

_EXIT_SECONDS = 2.0
_ending = threading.Event()
_all: weakref.WeakSet[Later] = weakref.WeakSet()


class Ending(LowtideError):
    """The process ends, and the work with it."""


def go_on() -> None:
    """To be called again and again by work that takes long.

    Raises:
        Ending: the process ends.
    """
    if _ending.is_set():
        raise Ending("ComfyUI, or the process that plans, is ending")


class Later:
    """A queue and the thread that empties it; the thread begins with the first piece."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.Queue[tuple[str, Callable[[], object]]] = queue.Queue(MOST_WAITING)
        self._lock = threading.Lock()
        self._asked: set[str] = set()
        self._thread: threading.Thread | None = None
        _all.add(self)

    def do(self, key: str, piece: Callable[[], object]) -> bool:
        """Have ``piece`` called some time; ``False`` if one of that key waits, or too many do.

        What it raises is logged and goes no further. Returns at once.
        """
        with self._lock:
            if key in self._asked:
                return False
            try:
                self._queue.put_nowait((key, piece))
            except queue.Full:
                return False
            self._asked.add(key)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        return True

    def finish(self, seconds: float) -> bool:
        """Wait until all is done; ``False`` if that takes longer."""
        deadline = time.monotonic() + seconds
        while self._queue.unfinished_tasks:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def drop(self) -> None:
        """Forget what waits; what has begun goes on."""
        while True:
            try:
                key, _ = self._queue.get_nowait()
            except queue.Empty:
                return
            self._done(key)

    def _run(self) -> None:
        while True:
            self._done(self._take())  # a name here would hold the last piece until the next one

    def _take(self) -> str:
        key, piece = self._queue.get()
        try:
            piece()
        except Ending:
            logger.debug("%s was broken off", self._name)
        except Exception as error:
            logger.info("what was left for later failed: %s: %s", type(error).__name__, error)
            logger.debug("the failure", exc_info=True)
        return key

    def _done(self, key: str) -> None:
        with self._lock:
            self._asked.discard(key)
        self._queue.task_done()


planning = Later("lowtide planning")
"""Where predictions are prepared that would take too long before a run."""


def _at_exit() -> None:
    end(_EXIT_SECONDS)


def end(seconds: float) -> bool:
    """Break off all work there is, for good; ``False`` if it takes longer to stop."""
    _ending.set()
    until = time.monotonic() + seconds
    found = list(_all)
    for later in found:
        later.drop()
    # A thread amid torch is not to outlive it.
    late = [later for later in found if not later.finish(until - time.monotonic())]
    return not late


atexit.register(_at_exit)

"""A thread that beats while somebody watches: often while a prompt runs, seldom while none does.

Without a watcher it ends after a grace period, and :meth:`Pulse.wake` starts it again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from .... import nvml

logger = logging.getLogger("lowtide")

RUNNING_SECONDS = 0.5
"""Between two beats while a prompt runs."""
IDLE_SECONDS = 1.0
"""Between two beats while none does."""
GRACE_SECONDS = 10.0
"""How long the thread waits for a watcher: a tab asks for the state before it is connected."""

NAME = "lowtide-pulse"


class Pulse:
    """Beats in a thread of its own.

    Args:
        watched: whether anyone would see what a beat sends.
        running: whether a prompt runs.
        beat: does the work; what it raises is logged, once, and the thread goes on.
    """

    def __init__(
        self, watched: Callable[[], bool], running: Callable[[], bool], beat: Callable[[], None]
    ) -> None:
        self._watched = watched
        self._running = running
        self._beat = beat
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None
        self._until = 0.0
        self._end = False
        self._complained = False
        self.beats = 0
        self.seconds = 0.0
        """CPU seconds the thread has used for its beats."""

    @property
    def alive(self) -> bool:
        """Whether the thread is there."""
        with self._lock:
            return self._thread is not None

    def wake(self) -> None:
        """Somebody watches, or something begins: look now, and start the thread if it ended."""
        with self._lock:
            self._until = time.monotonic() + GRACE_SECONDS
            self._changed.set()
            if self._thread is None:
                self._end = False
                self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the thread now."""
        with self._lock:
            thread, self._end = self._thread, True
            self._changed.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        last = float("-inf")
        with nvml.held():
            while not self._over():
                due = last + (RUNNING_SECONDS if self._running() else IDLE_SECONDS)
                wait = due - time.monotonic()
                if not self._watched():
                    wait = max(wait, RUNNING_SECONDS)
                if wait > 0:
                    self._changed.wait(wait)
                    self._changed.clear()
                    continue
                last = time.monotonic()
                self._once()

    def _over(self) -> bool:
        with self._lock:
            gone = not self._watched() and time.monotonic() > self._until
            if self._end or gone:
                self._thread = None
                return True
            return False

    def _once(self) -> None:
        started = time.thread_time()
        try:
            self._beat()
        except Exception:
            if not self._complained:
                self._complained = True
                logger.exception("Lowtide could not take a sample for the overlay")
        self.beats += 1
        self.seconds += time.thread_time() - started

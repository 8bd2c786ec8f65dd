"""The history of this process: what hosts hand their finished runs to, and plans are asked from.

Rows are written by a thread of their own, so that no run waits for a disk; it holds nothing but
rows. ``LOWTIDE_HISTORY=off`` switches all of it off. No torch here.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import stores
from .history import History, Key, Row
from .history_file import NAME

logger = logging.getLogger("lowtide")

SWITCH = "LOWTIDE_HISTORY"
OFF = ("off", "0", "no", "false")
"""What switches off, as the value of an environment variable of ours."""

MOST_QUEUED = 256
"""Runs that may wait for the writer; more are not kept, and it is said once."""

MOST_EXPECTED = 256
"""Predictions remembered until the run they were made for; the oldest go first."""

_EXIT_SECONDS = 2.0


@dataclass(frozen=True)
class Expected:
    """A prediction of a stage: bytes and seconds before any correction, and the bytes after it."""

    peak: int | None = None
    seconds: float | None = None
    corrected: int | None = None


Rows = Callable[[], Sequence[Row]]
"""What makes a run's rows, on the writer's thread. It must hold figures and names only."""


class _Writer:
    """A queue and the thread that empties it; the thread begins with the first run."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Rows] = queue.Queue(MOST_QUEUED)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._full = False

    def put(self, rows: Rows) -> None:
        """Hand over one run; returns at once."""
        try:
            self._queue.put_nowait(rows)
        except queue.Full:
            if not self._full:
                logger.warning(
                    "the history cannot keep up: %s runs wait to be written, and this one is not "
                    "kept",
                    MOST_QUEUED,
                )
            self._full = True
            return
        self._full = False
        if self._thread is None or not self._thread.is_alive():
            self._begin()

    def flush(self, seconds: float) -> bool:
        """Wait until all that was handed over is written; False if that takes longer."""
        deadline = time.monotonic() + seconds
        while self._queue.unfinished_tasks:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="lowtide history", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        while True:
            _write(self._queue.get())  # a name here would hold the last run until the next one
            self._queue.task_done()


def _write(rows: Rows) -> None:
    try:
        made = rows()
        if made:
            history().add(made)
    except Exception:  # the next run's rows are still to be written
        logger.exception("a run was not added to the history")


_writer = _Writer()
_histories: dict[str, History] = {}
_histories_lock = threading.Lock()
_expected: OrderedDict[tuple[Key, str], Expected] = OrderedDict()
_expected_lock = threading.Lock()


def active() -> bool:
    """Whether runs are kept: unless the environment says no."""
    return os.environ.get(SWITCH, "").strip().lower() not in OFF


def history() -> History:
    """The history of this machine, or one in memory where there is no place for a file."""
    try:
        path = stores.folder() / NAME if active() else None
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        logger.debug("no folder for the history: %s", error)
        path = None
    with _histories_lock:
        found = _histories.get(str(path))
        if found is None:
            if path is None and active():
                logger.warning(
                    "there is no folder for the history: it is kept in memory only. Install "
                    "platformdirs, or name a folder in %s",
                    stores.ENVIRONMENT,
                )
            found = _histories[str(path)] = History(path)
        return found


def log(rows: Rows) -> None:
    """Keep a run: ``rows`` is called on the writer's thread. Returns at once; never raises."""
    try:
        if active():
            _writer.put(rows)
    except Exception:  # a run never fails for its history
        logger.exception("a run was not handed to the history")


def flush(seconds: float = 5.0) -> bool:
    """Wait until every run handed over is written; whether it is."""
    return _writer.flush(seconds)


def expect(
    key: Key,
    stage: str,
    peak: int | None,
    seconds: float | None = None,
    corrected: int | None = None,
) -> None:
    """Remember a prediction, before any correction, for the row of the run it was made for.

    Args:
        peak: bytes of torch's allocator. seconds: wall time of the stage.
        corrected: what people were told the peak would be; ``None`` = ``peak``.
    """
    with _expected_lock:
        _expected.pop((key, stage), None)
        _expected[key, stage] = Expected(peak, seconds, peak if corrected is None else corrected)
        while len(_expected) > MOST_EXPECTED:
            _expected.popitem(last=False)


def expected(key: Key, stage: str) -> tuple[int | None, float | None]:
    """The latest prediction of a stage: bytes and seconds, ``None`` where there is none."""
    found = foretold(key, stage)
    return found.peak, found.seconds


def foretold(key: Key, stage: str) -> Expected:
    """The latest prediction of a stage, with what people were told."""
    with _expected_lock:
        return _expected.get((key, stage), Expected())


def summary() -> dict[str, Any]:
    """What is kept, as plain JSON values, bounded; for a person or a browser to see."""
    flush(1.0)
    return {"active": active(), **history().summary()}


def outdate(gpu: str) -> None:
    """Forget what was predicted for a device, by figures that no longer count; never raises.

    Its runs stay: what they took, and what did not fit.
    """
    with _expected_lock:
        for key in [key for key in _expected if key[0].gpu == gpu]:
            del _expected[key]
    if active():
        flush(1.0)  # of the last run, predicted by them too
        history().outdate(gpu)


def reset() -> int:
    """Forget every run and every prediction; the number of rows there were."""
    flush()
    with _expected_lock:
        _expected.clear()
    return history().reset()


def _at_exit() -> None:
    if not flush(_EXIT_SECONDS):
        logger.warning("the last runs were not written to the history in time")
        return  # the writer has the file
    for found in list(_histories.values()):
        found.close()


atexit.register(_at_exit)

"""Recorded traces on disk: one file a key, written whole or not at all, rebuilt when damaged."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .trace import Trace, TraceError, dump, key_of, load

logger = logging.getLogger("lowtide")

MOST_BYTES = 256 << 20
"""Of all files together; those used longest ago go first."""
REMEMBERED = 8
"""Traces kept in memory as well, some MB each: reading one from disk takes a tenth of a second."""
_ENDING, _PART = ".trace", ".part"
_ABANDONED = 3600.0
"""Seconds after which a part of a file is taken to be of a process that died."""


class TraceCache:
    """Traces in ``folder``, which is made when the first one is kept.

    The key holds everything a trace depends on, so that one that no longer holds is never found.
    A folder that cannot be written costs the time of recording again, and nothing else.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self._recent: OrderedDict[str, Trace] = OrderedDict()

    def recorded(self, question: Mapping[str, Any], record: Callable[[], Trace]) -> Trace:
        """The trace of ``question``: from memory, from disk, else by ``record``, and then kept."""
        key = key_of(question)
        trace = self.recalled(key)
        if trace is None:
            trace = record()
            self.keep(key, trace)
            self._remember(key, trace)
        return trace

    def recalled(self, key: str) -> Trace | None:
        """The trace kept under ``key``, in memory or on disk."""
        with self._lock:
            found = self._recent.get(key)
        if found is None:
            found = self.find(key)
        if found is not None:
            self._remember(key, found)
        return found

    def has(self, key: str) -> bool:
        """Whether the trace need not be recorded; that its file is damaged is found out later."""
        with self._lock:
            return key in self._recent or self._path(key).exists()

    def _remember(self, key: str, trace: Trace) -> None:
        with self._lock:
            self._recent[key] = trace
            self._recent.move_to_end(key)
            while len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)

    def find(self, key: str) -> Trace | None:
        """The trace kept under ``key``; a damaged one is removed and not found."""
        path = self._path(key)
        try:
            trace = load(path.read_bytes(), key)
            os.utime(path)
        except FileNotFoundError:
            return None
        except TraceError as error:
            logger.warning("%s is recorded anew: %s", path.name, error)
            self._remove(path)
            return None
        except OSError as error:
            logger.debug("%s cannot be read: %s", path, error)
            return None
        return trace

    def keep(self, key: str, trace: Trace) -> bool:
        """Keep ``trace`` under ``key``; ``False`` where the folder does not take it."""
        path = self._path(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=_PART)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(dump(trace, key))
                os.replace(name, path)
            except BaseException:
                self._remove(Path(name))
                raise
        except OSError as error:
            logger.warning("a trace cannot be kept in %s: %s", self.folder, error)
            return False
        self._prune()
        return True

    def size(self) -> int:
        """Bytes of all traces."""
        return sum(size for _, size, _ in self._files())

    def clear(self) -> int:
        """Remove every trace; returns the bytes on disk."""
        with self._lock:
            self._recent.clear()
        self._tidy(0.0)
        return sum(size for _, size, path in self._files() if self._remove(path))

    def _tidy(self, age: float = _ABANDONED) -> None:
        """Remove what was being written ``age`` seconds ago, by whoever did not live to end it."""
        for path in self.folder.glob(f"*{_PART}"):
            try:
                left = time.time() - path.stat().st_mtime >= age
            except OSError:
                continue
            if left:
                self._remove(path)

    def _prune(self) -> None:
        self._tidy()
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        while files and total > self.most_bytes:
            _, size, path = files.pop(0)
            if self._remove(path):
                total -= size

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self.folder.glob(f"*{_ENDING}"):
            try:
                state = path.stat()
            except OSError:
                continue
            found.append((state.st_mtime, state.st_size, path))
        return found

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_ENDING}"

    @staticmethod
    def _remove(path: Path) -> bool:
        try:
            path.unlink()
        except OSError:
            return False
        return True


_stores: dict[str, TraceCache] = {}
_stores_lock = threading.Lock()


def shared(folder: Path) -> TraceCache:
    """The cache of this process for ``folder``: whoever asks meets the traces the others met."""
    with _stores_lock:
        return _stores.setdefault(str(folder), TraceCache(folder))

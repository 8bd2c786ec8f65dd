"""The learning store: what runs needed, and what that says about the next ones.

Rows are kept in one SQLite file that several processes share (``history_file.py``); where it
cannot be written they are kept in this process's memory, and written once it can. What they mean
is computed in ``corrections.py``. No torch here.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from . import corrections, history_file
from .history_answers import LEVEL_ROWS, Answers
from .history_rows import Key, Row, Table
from .units import MIB, format_bytes

logger = logging.getLogger("lowtide")

__all__ = ["History", "Key", "Row"]

MOST_ROWS = 20_000
MOST_BYTES = 16 * MIB
MOST_WAITING = 1_000
"""Rows kept in memory while the file cannot be written; the oldest go first."""

LISTED = 100
"""Lines of a summary."""

MODEL_ROWS = 1_000
"""Of one model, the latest that a decision looks at."""

_T = TypeVar("_T")


class History(Answers):
    """The rows of one file. Safe to use from any thread and from several processes.

    No method raises for what the file system or the database does: a run never fails, or waits,
    for its history. Trouble is logged once, when it begins.

    Args:
        path: the file; ``None`` keeps everything in memory.
        most_rows, most_bytes: beyond these the oldest rows are deleted.
    """

    def __init__(
        self, path: Path | None, *, most_rows: int = MOST_ROWS, most_bytes: int = MOST_BYTES
    ) -> None:
        self.path = None if path is None else path.absolute()
        self.trouble: str | None = None
        """Why rows are kept in memory only; ``None`` while they are written."""
        self._most_rows = most_rows
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._file: Table | None = None
        self._seen: tuple[int, int] | None = None
        self._suspect = False
        self._waiting_lock = threading.Lock()
        self._waiting = Table.in_memory()

    def add(self, rows: Sequence[Row]) -> bool:
        """Keep rows, all or none of them; whether they are in the file now."""
        clipped = [row.clipped() for row in rows]
        with self._lock:
            if self.path is not None:
                for _ in range(2):
                    try:
                        self._write(clipped)
                    except sqlite3.Error as error:
                        broken = history_file.is_broken(error)
                        self._close()
                        if broken and self._begin_anew():
                            continue
                        self._complain(error)
                    except OSError as error:
                        self._complain(error)
                    else:
                        return True
                    break
            with self._waiting_lock:
                self._waiting.insert(clipped, most=MOST_WAITING)
            return False

    def of_model(self, gpu: str, model: str, limit: int = MODEL_ROWS) -> list[Row]:
        """The latest rows of a model, the latest first; see :class:`.recall.Recall`."""
        rows = self._both(lambda table: table.of_model(gpu, model, limit))
        rows.sort(key=lambda row: row.at, reverse=True)
        return rows[:limit]

    def summary(self, limit: int = LISTED) -> dict[str, Any]:
        """What is kept, as plain JSON values: counts, and the latest ``limit`` kinds of runs."""
        limit = max(0, min(LISTED, limit))
        spans = [it for it in self._both(lambda table: list(table.span())) if it is not None]
        groups = self._both(lambda table: table.groups(limit))
        for group in groups:
            key = Key(*(group[name] for name in ("gpu", "model", "shapes", "plan")))
            group["correction"] = round(self.correction(key, group["stage"]), 4)
        groups.sort(key=lambda group: float(group["latest"]), reverse=True)
        return {
            "path": None if self.path is None else str(self.path),
            "trouble": self.trouble,
            "rows": sum(self._both(lambda table: [table.count()])),
            "waiting": self._in_memory(Table.count),
            "bytes": sum(self._from_file(lambda table: [table.bytes()]) or [0]),
            "most_rows": self._most_rows,
            "most_bytes": self._most_bytes,
            "oldest": min(spans, default=None),
            "latest": max(spans, default=None),
            "runs": groups[:limit],
        }

    def reset(self) -> int:
        """Forget everything; the number of rows there were."""
        with self._lock:
            removed = self._in_memory(Table.clear)
            if self.path is None or history_file.identity(self.path) is None:
                return removed
            try:
                removed += self._open().clear()
                self._open().connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except (sqlite3.Error, OSError) as error:
                self._close()
                broken = isinstance(error, sqlite3.Error) and history_file.is_broken(error)
                if not (broken and self._begin_anew()):
                    self._complain(error)
            return removed

    def outdate(self, gpu: str) -> None:
        """Forget what was predicted for a device: its rows stay, and correct nothing any more."""
        with self._lock:
            self._in_memory(lambda table: table.outdate(gpu))
            if self.path is None or history_file.identity(self.path) is None:
                return
            try:
                self._open().outdate(gpu)
            except (sqlite3.Error, OSError) as error:
                self._close()
                self._complain(error)

    def close(self) -> None:
        """Close the file; the next :meth:`add` opens it again."""
        with self._lock:
            self._close()

    def _write(self, rows: list[Row]) -> None:
        with self._waiting_lock:
            waiting = self._waiting.all()
        table = self._open()
        # Below the file's hard limit, which would refuse the row instead.
        most_bytes = self._most_bytes * 3 // 4
        table.insert([*waiting, *rows], most=self._most_rows, most_bytes=most_bytes)
        if waiting:
            self._in_memory(Table.clear)
        if self.trouble is not None:
            logger.info("the history %s is written again", self.path)
            self.trouble = None

    def _open(self) -> Table:
        """The file, opened; again if somebody deleted or replaced it, or a reader met damage."""
        assert self.path is not None
        if self._suspect or history_file.identity(self.path) != self._seen:
            self._close()
            self._suspect = False
        if self._file is None:
            self._seen = history_file.identity(self.path)
            self._file = history_file.open_to_write(self.path, self._most_bytes)
            self._seen = history_file.identity(self.path)
        return self._file

    def _close(self) -> None:
        table, self._file = self._file, None
        if table is not None:
            try:
                table.close()
            except sqlite3.Error:
                logger.debug("the history was not closed in order", exc_info=True)

    def _begin_anew(self) -> bool:
        """Move the damaged file out of the way; False where that cannot be done."""
        assert self.path is not None
        try:
            history_file.move_aside(self.path, self._seen)
        except OSError as error:
            self._complain(error)
            return False
        return True

    def _complain(self, error: Exception) -> None:
        said = str(error) or type(error).__name__
        if self.trouble is None:
            logger.warning(
                "the history %s cannot be written (%s): what is learnt is kept in memory only, "
                "until it can. Make room on that disk or make the folder writable, or name another "
                "folder in LOWTIDE_HOME; LOWTIDE_HISTORY=off switches the history off",
                self.path,
                said,
            )
        self.trouble = said

    def _known(self, key: Key, stage: str) -> tuple[list[Row], list[Row]]:
        """(rows of this key, other rows of its model), the latest ones."""

        def latest(exact: bool) -> list[Row]:
            rows = self._both(lambda t: t.recent(key, stage, corrections.RECENT, exact=exact))
            rows.sort(key=lambda row: row.at, reverse=True)
            return rows[: corrections.RECENT]

        return latest(True), latest(False)

    def _of_level(self, key: Key, level: str) -> list[Row]:
        rows = self._both(lambda table: table.of_level(key, level, LEVEL_ROWS))
        rows.sort(key=lambda row: row.at, reverse=True)
        return rows[:LEVEL_ROWS]

    def _both(self, read: Callable[[Table], list[_T]]) -> list[_T]:
        """What is in the file, and what waits in memory to be written there."""
        return [*(self._from_file(read) or []), *self._in_memory(read)]

    def _in_memory(self, read: Callable[[Table], _T]) -> _T:
        with self._waiting_lock:
            return read(self._waiting)

    def _from_file(self, read: Callable[[Table], list[_T]]) -> list[_T] | None:
        """By a connection of its own: a reader waits for no writer, here or elsewhere."""
        if self.path is None:
            return None
        if history_file.identity(self.path) is None:
            return None
        try:
            table = history_file.open_to_read(self.path)
            try:
                return read(table)
            finally:
                table.close()
        except sqlite3.Error as error:
            self._suspect = self._suspect or history_file.is_broken(error)
            logger.debug("the history was not read: %s", error)
            return None


def describe(summary: dict[str, Any]) -> str:
    """A summary for a person."""
    place = summary["path"] or "nowhere: in memory only"
    lines = [
        f"History: {place}",
        f"{summary['rows']} rows of at most {summary['most_rows']}, "
        f"{format_bytes(summary['bytes'])} of at most {format_bytes(summary['most_bytes'])}",
    ]
    if summary["trouble"] is not None:
        lines.append(f"In memory only: {summary['trouble']}")
    for run in summary["runs"]:
        lines.append(
            f"{run['model']}, {run['shapes'] or 'any shape'}, {run['plan']}, {run['stage']}: "
            f"{run['runs']} runs, {format_bytes(run['measured'])} at the last one"
            + ("" if run["predicted"] is None else f" ({format_bytes(run['predicted'])} foretold)")
            + f", predictions times {run['correction']:.3g}"
            + (f", out of memory {run['out_of_memory']} times" if run["out_of_memory"] else "")
        )
    return "\n".join(lines)

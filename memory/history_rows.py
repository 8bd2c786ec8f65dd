"""What one run leaves in the history: a row for each stage, and the table of them.

Only figures, and names of classes and sizes: no prompt, no path, no file name. No torch here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

FITS, OUT_OF_MEMORY, FAILED, INTERRUPTED = "fits", "out of memory", "failed", "interrupted"
OUTCOMES = (FITS, OUT_OF_MEMORY, FAILED, INTERRUPTED)

TEXT_LIMIT = 160
"""Characters kept of each name; what is longer is no name of ours."""


@dataclass(frozen=True)
class Key:
    """What a run is compared by.

    Attributes:
        gpu: the device's name, memory and software.
        model: class and size of the model or pipeline.
        shapes: of what it worked on.
        plan: level, budget and settings, as text.
        size: what ``shapes`` come to in one number: pixels, or latent positions, of all images
            together. The same unit for all rows of a model and stage.
    """

    gpu: str
    model: str
    shapes: str
    plan: str
    size: int = 0


@dataclass(frozen=True)
class Row:
    """One stage of one run. Bytes and seconds; ``None`` is unknown.

    Attributes:
        stage: such as ``denoising``.
        level: the level's name.
        at: Unix time of the run's end.
        predicted, predicted_seconds: what was foretold **before any correction**: else the
            correction would correct itself away.
        measured, reserved: highest bytes of torch's allocator.
        seconds: wall time.
        outcome: one of :data:`OUTCOMES`.
        free: what the process could use of the device in all: free, or held by itself.
    """

    key: Key
    stage: str
    level: str
    at: float
    outcome: str = FITS
    predicted: int | None = None
    measured: int | None = None
    reserved: int | None = None
    predicted_seconds: float | None = None
    seconds: float | None = None
    free: int | None = None

    def clipped(self) -> Row:
        """The row with names no longer than :data:`TEXT_LIMIT`."""
        key = self.key
        short = Key(_clip(key.gpu), _clip(key.model), _clip(key.shapes), _clip(key.plan), key.size)
        return replace(self, key=short, stage=_clip(self.stage), level=_clip(self.level))


_NAMES = (
    "at", "gpu", "model", "shapes", "plan", "size", "stage", "level", "outcome", "predicted",
    "measured", "reserved", "predicted_seconds", "seconds", "free",
)  # fmt: skip

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS runs (
        id INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        gpu TEXT NOT NULL, model TEXT NOT NULL, shapes TEXT NOT NULL, plan TEXT NOT NULL,
        size INTEGER NOT NULL, stage TEXT NOT NULL, level TEXT NOT NULL, outcome TEXT NOT NULL,
        predicted INTEGER, measured INTEGER, reserved INTEGER,
        predicted_seconds REAL, seconds REAL, free INTEGER)""",
    "CREATE INDEX IF NOT EXISTS runs_by_model ON runs (gpu, model, stage, id)",
)

_COLUMNS = ", ".join(_NAMES)
_INSERT = f"INSERT INTO runs ({_COLUMNS}) VALUES ({', '.join('?' * len(_NAMES))})"
_TEXTS = ("gpu", "model", "shapes", "plan", "stage", "level", "outcome")
_SOUND = " AND ".join(
    f"typeof({name}) = 'text'"
    if name in _TEXTS
    else f"({name} IS NULL OR {name} BETWEEN -9e99 AND 9e99)"
    for name in _NAMES
)
"""Of rows as they are written here. SQLite takes any value for a column; what is none is not read:
texts and blobs come after all numbers, and infinity is beyond them."""
_OF_MODEL = "gpu = ? AND model = ? AND stage = ?"
_GROUPS = f"""
SELECT gpu, model, shapes, plan, stage, level, count(*), sum(outcome = '{OUT_OF_MEMORY}'), max(id),
       max(at), max(measured), avg(seconds)
FROM runs WHERE {_SOUND}
GROUP BY gpu, model, shapes, plan, stage, level ORDER BY max(id) DESC LIMIT ?"""


class Table:
    """The rows in one SQLite database. Not thread-safe; every method may raise sqlite3.Error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    @classmethod
    def in_memory(cls) -> Table:
        """An empty table in this process's memory."""
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        for statement in SCHEMA:
            connection.execute(statement)
        return cls(connection)

    def insert(self, rows: Iterable[Row], *, most: int, most_bytes: int | None = None) -> None:
        """Add rows in their order, all or none; the oldest go where there are too many."""
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(_INSERT, map(_values, rows))
            self._prune(most, most_bytes)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _prune(self, most: int, most_bytes: int | None) -> None:
        first, last = self._execute("SELECT min(id), max(id) FROM runs")[0]
        if last is None:
            return
        delete_to = last - most  # ids are given without gaps, and only the oldest are deleted
        if most_bytes is not None and self.bytes() > most_bytes:
            delete_to = max(delete_to, first + (last - first) // 4)
        if delete_to >= first:
            self.connection.execute("DELETE FROM runs WHERE id <= ?", (delete_to,))

    def all(self) -> list[Row]:
        """Every row, the oldest first."""
        return self._rows("1", (), "id")

    def recent(self, key: Key, stage: str, limit: int, *, exact: bool) -> list[Row]:
        """The latest rows of a model and stage: of these shapes and this plan, or all others."""
        where = f"{_OF_MODEL} AND {'' if exact else 'NOT '}(shapes = ? AND plan = ?)"
        found = (key.gpu, key.model, stage, key.shapes, key.plan)
        return self._rows(where, found, "id DESC", limit)

    def of_model(self, gpu: str, model: str, limit: int) -> list[Row]:
        """The latest rows of a model, of any stage, shapes and plan."""
        return self._rows("gpu = ? AND model = ?", (gpu, model), "id DESC", limit)

    def of_level(self, key: Key, level: str, limit: int) -> list[Row]:
        """The latest rows of a model at a level, of any shapes, that fit or did not."""
        where = "gpu = ? AND model = ? AND level = ? AND outcome IN (?, ?)"
        values = (key.gpu, key.model, level, FITS, OUT_OF_MEMORY)
        return self._rows(where, values, "id DESC", limit)

    def groups(self, limit: int) -> list[dict[str, Any]]:
        """Counts and figures of what was run, the latest first, as plain JSON values."""
        names = (
            "gpu", "model", "shapes", "plan", "stage", "level", "runs", "out_of_memory", "id",
            "latest", "highest", "mean_seconds",
        )  # fmt: skip
        found = [dict(zip(names, row, strict=True)) for row in self._execute(_GROUPS, (limit,))]
        for group in found:
            last = self._rows("id = ?", (group.pop("id"),), "id")[0]
            group |= {"predicted": last.predicted, "measured": last.measured}
        return found

    def count(self) -> int:
        """Rows there are."""
        return int(self._execute("SELECT count(*) FROM runs")[0][0])

    def span(self) -> tuple[float | None, float | None]:
        """Unix times of the oldest and the latest row."""
        oldest, latest = self._execute("SELECT min(at), max(at) FROM runs WHERE " + _SOUND)[0]
        return oldest, latest

    def bytes(self) -> int:
        """Bytes of the pages in use."""
        pages, unused, size = (
            int(self._execute(f"PRAGMA {name}")[0][0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - unused) * size

    def clear(self) -> int:
        """Delete every row and give their pages back; the number of rows there were."""
        removed = self.connection.execute("DELETE FROM runs").rowcount
        # `execute` would take one step of it, which is one page.
        self.connection.executescript("PRAGMA incremental_vacuum")
        return removed

    def outdate(self, gpu: str) -> None:
        """Take the predictions out of a device's rows."""
        change = "UPDATE runs SET predicted = NULL, predicted_seconds = NULL WHERE gpu = ?"
        self.connection.execute(change, (_clip(gpu),))

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self.connection.execute(statement, values).fetchall()

    def _rows(
        self, where: str, values: Sequence[Any], order: str, limit: int | None = None
    ) -> list[Row]:
        tail = "" if limit is None else f" LIMIT {int(limit)}"
        statement = f"SELECT {_COLUMNS} FROM runs WHERE {where} AND {_SOUND} ORDER BY {order}{tail}"
        return [_row(found) for found in self._execute(statement, values)]


def _clip(text: str) -> str:
    return str(text)[:TEXT_LIMIT]


def _values(row: Row) -> tuple[Any, ...]:
    flat = {**vars(row), **vars(row.key)}
    return tuple(flat[name] for name in _NAMES)


def _row(values: Sequence[Any]) -> Row:
    found = dict(zip(_NAMES, values, strict=True))
    key = Key(*(found.pop(name) for name in ("gpu", "model", "shapes", "plan", "size")))
    return Row(key=key, **found)

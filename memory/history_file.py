"""The history's SQLite file: opened so that several processes and a sudden end do it no harm.

Write-ahead logging: a process that is killed in the middle of writing loses what it was writing,
and nothing else. A file that is no database any more is moved aside, never deleted. No torch here.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from pathlib import Path

from .history_rows import SCHEMA, Table

logger = logging.getLogger("lowtide")

NAME = "history-1.sqlite3"
"""With the number of the layout: another layout is another file."""

WAIT_SECONDS = 5.0
"""How long a writer waits for another process's."""

READ_SECONDS = 0.2
"""How long a reader waits: it may be the thread that runs the prompts."""

ASIDE_KEPT = 3
"""Files moved aside that are kept, the oldest deleted first."""

_LOG_PAGES = 256
_TURN_SECONDS = 2.0
_TAILS = ("-wal", "-shm", "")
"""The log goes first: a new file must not meet an old log."""

_BROKEN = ("malformed", "not a database", "file is encrypted", "unsupported file format")


def is_broken(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file itself is damaged. In words: 3.10 knows no error codes."""
    return any(words in str(error) for words in _BROKEN)


def identity(path: Path) -> tuple[int, int] | None:
    """What tells this file from a later one of its name; ``None`` where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def open_to_write(path: Path, most_bytes: int) -> Table:
    """Open the file, making it and its folder where they are missing.

    Raises:
        sqlite3.Error: it is damaged (:func:`is_broken`), locked, or cannot be written.
        OSError: the folder cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(
        path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        _log_ahead(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")  # what was deleted can't be read any more
        connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        size = int(connection.execute("PRAGMA page_size").fetchone()[0])
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_PAGES * size}")
        connection.execute(f"PRAGMA max_page_count = {max(16, most_bytes // size)}")
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(f"database disk image is malformed: {found}")
        connection.execute("BEGIN IMMEDIATE")
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return Table(connection)


def open_to_read(path: Path) -> Table:
    """Open what is there, in a folder that cannot be written too (without its latest rows then).

    Raises:
        sqlite3.Error: there is no such file, it cannot be read, or is locked.
    """
    address = path.as_uri()
    try:
        return _read(f"{address}?mode=rw")
    except sqlite3.OperationalError as error:
        # While somebody holds the file, what is in it without its log may be half of a change.
        if identity(path) is None or "locked" in str(error):
            raise
    return _read(f"{address}?mode=ro&immutable=1")


def _read(address: str) -> Table:
    connection = sqlite3.connect(address, uri=True, timeout=READ_SECONDS)
    try:
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
    except BaseException:
        connection.close()
        raise
    return Table(connection)


def move_aside(path: Path, seen: tuple[int, int] | None) -> Path | None:
    """Rename a damaged file and its log out of the way; its new name.

    ``seen`` is the :func:`identity` of the damaged one: ``None`` is returned where another process
    has put a new one there since, or is about to.

    Raises:
        OSError: it cannot be renamed.
    """
    turn = path.with_name(f"{path.name}.moving")
    if not _take(turn):
        return None
    try:
        if identity(path) != seen:
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S")
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{os.getpid()}")
        for tail in _TAILS:
            source = path.with_name(path.name + tail)
            if source.exists():
                os.replace(source, aside.with_name(aside.name + tail))
        _forget_oldest(path)
    finally:
        turn.unlink(missing_ok=True)
    logger.warning(
        "the history %s is damaged and was moved to %s; a new one is begun, and predictions are "
        "corrected again once some runs are in it",
        path,
        aside,
    )
    return aside


def _take(turn: Path) -> bool:
    """Make the file that says whose turn it is; False once another process's turn is over."""
    deadline = time.monotonic() + _TURN_SECONDS
    while time.monotonic() < deadline:
        try:
            os.close(os.open(turn, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return True
        except FileExistsError:
            time.sleep(0.01)
        if not turn.exists():
            return False
    turn.unlink(missing_ok=True)  # whoever made it did not live to take it away
    return False


def _forget_oldest(path: Path) -> None:
    aside = sorted(it for it in path.parent.glob(f"{path.name}.damaged-*") if it.is_file())
    bodies = [it for it in aside if not it.name.endswith(_TAILS[:2])]
    for body in bodies[:-ASIDE_KEPT]:
        for tail in _TAILS:
            body.with_name(body.name + tail).unlink(missing_ok=True)


def _log_ahead(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging; SQLite does not wait for that lock by itself."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)

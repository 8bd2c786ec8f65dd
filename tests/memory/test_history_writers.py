"""Several processes write to one history, and some are killed while they do."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from lowtide.memory import history_file
from lowtide.memory.history import History
from lowtide.tests.memory.history_files import check, path, row, rows_of, writer

__all__ = ["path"]


def test_eight_processes_lose_no_row(path: Path) -> None:
    running = [writer(path, f"model {number}", 40) for number in range(8)]
    for process in running:
        said = process.communicate(timeout=60)[0].split("\n")
        assert process.returncode == 0 and said[:-1] == [str(n) for n in range(40)], said
    found = rows_of(path)
    assert len(found) == 8 * 40
    for number in range(8):
        mine = [r.key.size for r in found if r.key.model == f"model {number}"]
        assert mine == list(range(40)), "in their order"
    assert check(path) == "ok"


def test_a_killed_process_loses_the_row_it_was_writing_at_most(path: Path) -> None:
    kept: dict[str, int] = {}
    for turn in range(6):
        name = f"model {turn}"
        process = writer(path, name, 100_000)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read().split("\n")
        process.wait(10)
        kept[name] = 1 + len([line for line in said if line.isdigit()])
        assert process.returncode == -signal.SIGKILL
    found = rows_of(path)
    for name, count in kept.items():
        sizes = [r.key.size for r in found if r.key.model == name]
        assert sizes == list(range(len(sizes)))
        assert count - 1 <= len(sizes) <= count + 1, "what it said was written is there"
    history = History(path)
    assert history.add([row()]) and history.trouble is None
    assert check(path) == "ok"


def test_several_processes_that_meet_damage_begin_one_new_file(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nothing of ours\n" * 500)
    running = [writer(path, f"model {number}", 5) for number in range(4)]
    said = [process.communicate(timeout=60)[0].split() for process in running]
    assert [process.returncode for process in running] == [0] * 4
    there = sorted(it.name for it in path.parent.iterdir())
    found = [(it.key.model, it.key.size) for it in rows_of(path)]
    assert len(found) == 20, (found, said, there)
    assert check(path) == "ok"
    assert len(list(path.parent.glob("*.damaged-*"))) == 1


def test_another_writer_that_never_ends_is_not_waited_for_forever(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(history_file, "WAIT_SECONDS", 0.05)
    history = History(path)
    history.add([row()])
    history.close()
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        assert not history.add([row()]) and "locked" in str(history.trouble)
        started = time.perf_counter()
        assert history.summary()["rows"] == 2, "readers do not wait for writers"
        assert time.perf_counter() - started < 1.0
        other.execute("ROLLBACK")
    assert history.add([row()]) and len(rows_of(path)) == 3


def test_a_file_that_is_held_is_not_read_without_its_log(path: Path) -> None:
    history = History(path)
    assert history.add([row()])
    history.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            history_file.open_to_read(path)
    assert len(rows_of(path)) == 1

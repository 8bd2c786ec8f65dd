"""The history's file under what may happen to it: other writers, a sudden end, damage, no room."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lowtide.memory import history_file
from lowtide.memory.history import History, Key, Row

WRITER = Path(__file__).with_name("history_writer.py")
KEY = Key("gpu", "model", "1x4x64x64", "none", 4096)


def row(at: float = 0.0, **more: object) -> Row:
    return Row(KEY, "denoising", "none", at, **{"predicted": 100, "measured": 120, **more})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stores" / history_file.NAME


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(WRITER), str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def rows_of(path: Path) -> list[Row]:
    table = history_file.open_to_read(path)
    try:
        return table.all()
    finally:
        table.close()


def check(path: Path) -> str:
    with sqlite3.connect(path) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


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


@pytest.mark.parametrize("cut", [1, 1000, 4096, 30_000])
def test_a_torn_log_loses_its_torn_end(path: Path, tmp_path: Path, cut: int) -> None:
    history = History(path)
    for at in range(30):
        history.add([row(at)])
    torn = tmp_path / "torn" / path.name
    shutil.copytree(path.parent, torn.parent)  # as a sudden loss of power leaves it: not closed
    log = torn.with_name(f"{torn.name}-wal")
    os.truncate(log, log.stat().st_size - cut)
    again = History(torn)
    assert again.add([row(99.0)]) and again.trouble is None
    times = [r.at for r in rows_of(torn)]
    assert times[-1] == 99.0 and times[:-1] == list(range(len(times) - 1))
    assert len(times) - 1 >= 29 - (cut // 4096 + 1) * 2
    assert check(torn) == "ok"


def test_rubbish_in_the_log_costs_only_what_it_covers(path: Path, tmp_path: Path) -> None:
    history = History(path)
    for at in range(20):
        history.add([row(at)])
    torn = tmp_path / "torn" / path.name
    shutil.copytree(path.parent, torn.parent)
    with torn.with_name(f"{torn.name}-wal").open("r+b") as log:
        log.seek(-5000, os.SEEK_END)
        log.write(b"\x5a" * 5000)
    again = History(torn)
    assert again.add([row(99.0)])
    times = [r.at for r in rows_of(torn)]
    assert len(times) >= 15 and times[-1] == 99.0 and check(torn) == "ok"


def spoil(path: Path, how: str) -> None:
    if how == "no database":
        path.write_bytes(b"this is something else entirely\n" * 100)
    elif how == "torn page":
        data = bytearray(path.read_bytes())
        data[4096 : 3 * 4096] = os.urandom(2 * 4096)
        path.write_bytes(bytes(data))
    elif how == "cut short":
        os.truncate(path, 3 * 4096 + 17)


@pytest.mark.parametrize("how", ["no database", "torn page", "cut short"])
def test_a_damaged_file_is_moved_aside_and_said(
    path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = History(path)
    first.add([row(at) for at in range(400)])
    first.close()
    other = path.with_name("profile.json")
    other.write_text("{}", encoding="utf-8")
    spoil(path, how)
    damaged = path.read_bytes()
    history = History(path)
    with caplog.at_level(logging.WARNING, "lowtide"):
        assert history.correction(KEY, "denoising") > 0, "reading never raises"
        assert history.add([row(1000.0)]), "and writing goes on"
    assert [r.at for r in rows_of(path)] == [1000.0] and history.trouble is None
    aside = list(path.parent.glob("*.damaged-*"))
    assert len(aside) == 1 and aside[0].read_bytes()[100:] == damaged[100:]
    messages = [it.getMessage() for it in caplog.records]
    assert len(messages) == 1 and "damaged" in messages[0] and str(aside[0]) in messages[0]
    assert other.read_text(encoding="utf-8") == "{}"
    assert not path.with_name(f"{path.name}.moving").exists()


def test_damage_while_the_file_is_open_is_met_by_the_next_write(path: Path) -> None:
    history = History(path)
    history.add([row(at) for at in range(400)])
    history.close()
    history.add([row(400.0)])
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))
    path.with_name(f"{path.name}-wal").write_bytes(b"")
    assert history.correction(KEY, "denoising") == 1.0
    assert history.add([row(1.0)])
    assert history.trouble is None and check(path) == "ok"
    assert len(list(path.parent.glob("*.damaged-*[0-9]"))) == 1


def test_several_processes_that_meet_damage_begin_one_new_file(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nothing of ours\n" * 500)
    running = [writer(path, f"model {number}", 5) for number in range(4)]
    for process in running:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert len(rows_of(path)) == 20 and check(path) == "ok"
    assert len(list(path.parent.glob("*.damaged-*"))) == 1


def test_a_file_another_process_has_begun_meanwhile_is_not_moved(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nothing of ours\n" * 500)
    damaged = history_file.identity(path)
    history = History(path.with_name("new"))
    history.add([row()])
    history.close()
    os.replace(history.path or path, path)
    assert history_file.move_aside(path, damaged) is None
    assert (
        len(rows_of(path)) == 1 and sorted(it.name for it in path.parent.iterdir())[0] == path.name
    )


def test_only_the_latest_damaged_files_are_kept(path: Path, monkeypatch) -> None:
    stamps = iter(f"2026010{number}-000000" for number in range(9))
    monkeypatch.setattr(history_file.time, "strftime", lambda _: next(stamps))
    for _ in range(5):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no database at all")
        history = History(path)
        assert history.add([row()])
        history.close()
    assert len(list(path.parent.glob("*.damaged-*"))) == history_file.ASIDE_KEPT


def test_a_turn_nobody_ends_is_not_waited_for_forever(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(history_file, "_TURN_SECONDS", 0.05)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nothing of ours\n" * 500)
    turn = path.with_name(f"{path.name}.moving")
    turn.touch()
    history = History(path)
    assert history.add([row()]) or history.add([row()])
    assert not turn.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True
    )
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_waited_out(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = small_disk / history_file.NAME
    history = History(path)
    assert history.add([row(0.0)])
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(b"x" * 4096)
    with caplog.at_level(logging.WARNING, "lowtide"):
        written = [history.add([row(float(at))] * 50) for at in range(1, 5)]
    assert written[-1] is False and history.trouble is not None
    said = [it.getMessage() for it in caplog.records]
    assert len(said) == 1 and "cannot be written" in said[0] and "Make room" in said[0]
    assert history.correction(KEY, "denoising") > 1.1, "what waits in memory counts"
    assert history.summary()["rows"] == 201
    ballast.unlink()
    assert history.add([row(9.0)]) and history.trouble is None
    assert len(rows_of(path)) == 202, "and is written once there is room"
    assert history.summary()["waiting"] == 0 and check(path) == "ok"


def test_the_same_where_the_database_itself_is_full(path: Path, monkeypatch) -> None:
    history = History(path)
    assert history.add([row()])
    monkeypatch.setattr(history, "_most_bytes", 1 << 40)  # never pruned: only the limit is left
    assert history._file is not None
    pages = history._file.connection.execute("PRAGMA page_count").fetchone()[0]
    history._file.connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    assert not history.add([row()] * 500)
    assert "full" in str(history.trouble)
    assert history.summary()["rows"] == 501
    assert history.add([row()]), "the next one opens the file anew"
    assert len(rows_of(path)) == 502


def test_a_folder_that_cannot_be_written_is_said_and_lived_with(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = small_disk / history_file.NAME
    first = History(path)
    first.add([row(), row(), row()])
    first.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    history = History(path)
    with caplog.at_level(logging.WARNING, "lowtide"):
        assert history.summary()["rows"] == 3, "what is there is read"
        assert not history.add([row()]) and not history.add([row()])
    assert history.summary()["rows"] == 5 and history.summary()["waiting"] == 2
    said = [it.getMessage() for it in caplog.records]
    assert len(said) == 1 and "in memory only" in said[0] and "LOWTIDE_HOME" in said[0]
    assert history.reset() == 2
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert history.add([row()]) and history.summary()["rows"] == 4


def test_a_file_in_the_folders_place_is_no_catastrophe(tmp_path: Path) -> None:
    (tmp_path / "stores").write_text("a file", encoding="utf-8")
    history = History(tmp_path / "stores" / history_file.NAME)
    assert not history.add([row()])
    assert history.trouble and history.summary()["rows"] == 1
    assert (tmp_path / "stores").read_text(encoding="utf-8") == "a file"


def test_a_folder_deleted_while_running_is_made_again(path: Path) -> None:
    history = History(path)
    history.add([row()])
    shutil.rmtree(path.parent)
    assert history.add([row(5.0)])
    assert [r.at for r in rows_of(path)] == [5.0]


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

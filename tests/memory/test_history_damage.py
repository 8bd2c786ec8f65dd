"""The history's file torn, cut short, overwritten, or something else altogether."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from lowtide.memory import history_file
from lowtide.memory.history import History
from lowtide.tests.memory.history_files import KEY, check, path, row, rows_of

__all__ = ["path"]


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


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("at", "zzz"),
        ("size", "big"),
        ("predicted", "abc"),
        ("measured", b"\xff"),
        ("measured", float("inf")),
        ("level", b"\xff\x00"),
        ("seconds", "long"),
    ],
)
def test_a_row_with_values_of_another_kind_is_not_read(
    path: Path, column: str, value: object
) -> None:
    history = History(path)
    history.add([row(at) for at in range(3)])
    before = history.summary()
    told = (history.margin(KEY, "denoising"), history.outcome(KEY, "none"))
    with sqlite3.connect(path) as spoilt:
        names = [it[1] for it in spoilt.execute("PRAGMA table_info(runs)") if it[1] != "id"]
        kept = ", ".join(names)
        spoilt.execute(f"INSERT INTO runs ({kept}) SELECT {kept} FROM runs WHERE id = 1")
        spoilt.execute(f"UPDATE runs SET {column} = ? WHERE id = 4", (value,))
    spoilt.close()
    assert (history.margin(KEY, "denoising"), history.outcome(KEY, "none")) == told
    assert len(history.of_model(KEY.gpu, KEY.model)) == 3
    found = history.summary()
    assert found["runs"] == before["runs"] and found["latest"] == before["latest"]

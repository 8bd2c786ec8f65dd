"""A full disk, a folder nobody may write to, and one that goes away."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lowtide.memory import history_file
from lowtide.memory.history import History
from lowtide.tests.memory.history_files import KEY, check, path, row, rows_of

__all__ = ["path"]


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

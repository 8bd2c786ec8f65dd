"""What the tests of the history's file share: rows, writers in other processes, a look inside."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from lowtide.memory import history_file
from lowtide.memory.history import Key, Row

WRITER = Path(__file__).with_name("history_writer.py")
KEY = Key("gpu", "model", "1x4x64x64", "none", 4096)


def row(at: float = 0.0, **more: object) -> Row:
    return Row(KEY, "denoising", "none", at, **{"predicted": 100, "measured": 120, **more})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A history's file in a folder that is not there yet."""
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

"""Runs are written by a thread of their own; whoever hands them over neither waits nor fails."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
from lowtide.memory import learning
from lowtide.memory.history import History, Key, Row
from lowtide.memory.history_file import NAME

KEY = Key("gpu", "model", "shape", "plan", 1)


def row(at: float = 0.0) -> Row:
    return Row(KEY, "denoising", "none", at, predicted=100, measured=150)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWTIDE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LOWTIDE_HISTORY", raising=False)
    return tmp_path / "home"


def test_runs_are_in_the_file_after_a_flush(home: Path) -> None:
    for at in range(5):
        learning.log(lambda at=at: [row(at)])
    assert learning.flush()
    assert (home / NAME).exists()
    assert learning.summary()["rows"] == 5 and learning.summary()["active"]
    assert learning.history().correction(KEY, "denoising") > 1.2
    assert learning.reset() == 5 and learning.summary()["rows"] == 0


@pytest.mark.parametrize("word", ["off", "OFF", " 0 ", "no", "false"])
def test_it_can_be_switched_off(home: Path, monkeypatch, word: str) -> None:
    monkeypatch.setenv("LOWTIDE_HISTORY", word)
    learning.log(lambda: [row()])
    assert learning.flush() and not home.exists()
    assert not learning.summary()["active"] and learning.summary()["rows"] == 0


def test_handing_over_takes_no_time_however_slow_the_disk(home: Path, monkeypatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(History, "add", lambda self, rows: gate.wait(10))
    took = []
    for _ in range(50):
        started = time.perf_counter()
        learning.log(lambda: [row()])
        took.append(time.perf_counter() - started)
    assert sorted(took)[25] < 1e-3
    assert not learning.flush(0.05)
    gate.set()
    assert learning.flush()


def test_too_many_waiting_runs_are_left_out_and_said_once(
    home: Path, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate, begun = threading.Event(), threading.Event()
    monkeypatch.setattr(History, "add", lambda self, rows: begun.set() or gate.wait(10))
    learning.log(lambda: [row()])
    assert begun.wait(5)
    with caplog.at_level(logging.WARNING, "lowtide"):
        for _ in range(learning.MOST_QUEUED + 20):
            learning.log(lambda: [row()])
    assert len(caplog.records) == 1 and "cannot keep up" in caplog.records[0].getMessage()
    gate.set()
    assert learning.flush()


def test_a_run_that_cannot_be_made_into_rows_harms_no_other(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> list[Row]:
        raise ValueError("as planned")

    with caplog.at_level(logging.ERROR, "lowtide"):
        learning.log(broken)
        learning.log(lambda: [row()])
        assert learning.flush()
    assert learning.summary()["rows"] == 1
    assert "was not added" in caplog.text


def test_the_thread_holds_nothing_of_a_run_once_it_is_written(home: Path) -> None:
    class Model:
        pass

    model = Model()
    gone = weakref.ref(model)
    learning.log(lambda model=model: [row()])
    del model
    assert learning.flush()
    gc.collect()
    assert gone() is None


def test_what_was_expected_is_found_by_its_key() -> None:
    assert learning.expected(KEY, "denoising") == (None, None)
    learning.expect(KEY, "denoising", 1000, 2.5)
    learning.expect(KEY, "denoising", 2000)
    assert learning.expected(KEY, "denoising") == (2000, None)
    for size in range(learning.MOST_EXPECTED):
        learning.expect(Key("gpu", "model", "shape", "plan", 10 + size), "denoising", 1)
    assert learning.expected(KEY, "denoising") == (None, None), "the oldest are forgotten"
    learning.reset()
    last = Key("gpu", "model", "shape", "plan", 9 + learning.MOST_EXPECTED)
    assert learning.expected(last, "denoising") == (None, None)


def test_no_folder_is_no_catastrophe(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("LOWTIDE_HOME")
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    monkeypatch.setattr(learning, "_histories", {})
    with caplog.at_level(logging.WARNING, "lowtide"):
        learning.log(lambda: [row()])
        assert learning.flush()
        assert learning.summary()["rows"] == 1 and learning.summary()["path"] is None
    assert len(caplog.records) == 1 and "LOWTIDE_HOME" in caplog.records[0].getMessage()


ENDING = """
import importlib.util, sys, types
for name, path in (("lowtide", sys.argv[1]), ("lowtide.memory", sys.argv[1] + "/memory")):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [path]
from lowtide.memory import learning
from lowtide.memory.history import Key, Row
for at in range(30):
    learning.log(lambda at=at: [Row(Key("gpu", "model", "s", "p", 1), "all", "none", at)])
"""


def test_what_waits_is_written_when_the_process_ends(home: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", ENDING, str(root)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert learning.summary()["rows"] == 30
    assert not (home / f"{NAME}-wal").exists(), "and the file is closed in order"

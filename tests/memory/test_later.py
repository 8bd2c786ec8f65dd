"""Work for later: one piece after the other, never twice at once, and nothing escapes."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from lowtide.memory import later as module
from lowtide.memory.later import MOST_WAITING, Ending, Later, end, go_on

ABOVE = Path(__file__).resolve().parents[3]
LEAVING = """
import threading
from lowtide.memory.adapters.comfy.overlay import planned
from lowtide.memory.later import go_on
begun = threading.Event()
def job():
    while True:
        begun.set()
        go_on()
assert planned._begin("node", job) is not None
begun.wait()
print("bye", flush=True)
"""


def test_pieces_are_done_in_their_order_and_the_caller_waits_for_none() -> None:
    later, gate, done = Later("test"), threading.Event(), []
    assert later.do("first", gate.wait)
    for number in range(3):
        assert later.do(str(number), lambda number=number: done.append(number))
    assert done == [] and not later.finish(0.02)
    gate.set()
    assert later.finish(5) and done == [0, 1, 2]


def test_one_of_a_key_waits_and_so_many_in_all() -> None:
    later, gate = Later("test"), threading.Event()
    assert later.do("same", gate.wait)
    assert not later.do("same", gate.wait)
    took = sum(later.do(str(number), gate.wait) for number in range(MOST_WAITING + 4))
    assert MOST_WAITING - 1 <= took <= MOST_WAITING
    gate.set()
    assert later.finish(5) and later.do("same", gate.wait)


def test_what_waits_can_be_dropped() -> None:
    later, gate, done = Later("test"), threading.Event(), []
    begun = threading.Event()
    later.do("first", lambda: (begun.set(), gate.wait()))
    assert begun.wait(5)
    later.do("second", lambda: done.append(1))
    later.drop()
    gate.set()
    assert later.finish(5) and done == []


def test_a_failure_ends_nothing(caplog) -> None:
    later, done = Later("test"), []
    with caplog.at_level("INFO", "lowtide"):
        later.do("broken", lambda: 1 / 0)
        later.do("whole", lambda: done.append(1))
        assert later.finish(5)
    assert done == [1] and "ZeroDivisionError" in caplog.text


def test_a_piece_is_let_go_once_it_is_done() -> None:
    class Piece:
        def __call__(self) -> None:
            pass

    later, piece = Later("test"), Piece()
    gone = weakref.ref(piece)
    later.do("piece", piece)
    del piece
    assert later.finish(5)
    gc.collect()
    assert gone() is None


@pytest.fixture
def _own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ending", threading.Event())
    monkeypatch.setattr(module, "_all", weakref.WeakSet())


@pytest.mark.usefixtures("_own_end")
def test_what_has_begun_is_broken_off_at_the_end_and_what_waits_is_dropped(caplog) -> None:
    later, begun, done = Later("test"), threading.Event(), []

    def long() -> None:
        begun.set()
        while True:
            go_on()

    later.do("long", long)
    later.do("next", lambda: done.append(1))
    assert begun.wait(5)
    started = time.monotonic()
    with caplog.at_level("INFO", "lowtide"):
        assert end(5)
    assert time.monotonic() - started < 1 and done == [] and caplog.text == ""
    with pytest.raises(Ending):
        go_on()


@pytest.mark.usefixtures("_own_end")
def test_the_end_is_not_waited_for_longer_than_told() -> None:
    later, gate = Later("test"), threading.Event()
    later.do("deaf", gate.wait)
    started = time.monotonic()
    assert not end(0.05)
    assert time.monotonic() - started < 1
    gate.set()


@pytest.mark.usefixtures("_own_end")
def test_a_trace_is_broken_off_at_the_end() -> None:
    from lowtide.memory.tracing import fake_copy, fake_mode, record

    mode = fake_mode()
    twin = fake_copy(torch.nn.Linear(2, 2), mode)
    with mode:
        given = torch.empty(1, 2, device="cuda:0")
    assert record(twin, lambda: twin(given), mode, [given]).weights
    end(1)
    with pytest.raises(Ending):
        record(twin, lambda: twin(given), mode, [given])


def test_a_process_that_predicts_for_the_fit_check_ends_at_once() -> None:
    env = {**os.environ, "PYTHONPATH": str(ABOVE)}
    with subprocess.Popen([sys.executable, "-c", LEAVING], stdout=subprocess.PIPE, env=env) as one:
        try:
            assert one.stdout is not None and one.stdout.readline() == b"bye\n"
            assert one.wait(10) == 0
        finally:
            one.kill()

"""Work for later: one piece after the other, never twice at once, and nothing escapes."""

from __future__ import annotations

import gc
import threading
import weakref

from lowtide.memory.later import MOST_WAITING, Later


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

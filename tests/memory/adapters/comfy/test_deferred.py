"""Work that waits for a moment at which it harms no prompt."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from lowtide.memory.adapters.comfy import deferred
from lowtide.memory.errors import LowtideError
from lowtide.tests.memory.adapters.comfy.fake_server import FakeQueue, FakeServer, Installed


@pytest.fixture
def queue() -> Iterator[FakeQueue]:
    server = FakeServer("tab")
    with Installed(server):
        yield server.prompt_queue
        deferred.forget()
    assert "get_flags" not in vars(server.prompt_queue)


def test_it_is_done_where_the_queue_gives_out_its_flags_and_nowhere_else(queue: FakeQueue) -> None:
    before = queue.get_flags
    future = deferred.submit(lambda: threading.current_thread())
    assert queue.flags and not future.done()
    queue.get_flags(reset=False)
    assert not future.done(), "others only look"
    queue.set_flag("free_memory", True)
    assert queue.get_flags()["free_memory"] is True
    assert future.result(0) is threading.current_thread()
    assert queue.get_flags == before, "nothing waits, nothing is wrapped"


def test_flags_that_the_work_sets_are_given_out_with_the_others(queue: FakeQueue) -> None:
    deferred.submit(lambda: queue.set_flag("unload_models", True))
    assert queue.get_flags()["unload_models"] is True


def test_in_order_and_what_fails_holds_up_nothing(queue: FakeQueue) -> None:
    done: list[str] = []

    def fails() -> None:
        done.append("fails")
        raise KeyError("a secret")

    def refuses() -> None:
        raise LowtideError("for a reason")

    def stops() -> None:
        raise SystemExit

    futures = [deferred.submit(it) for it in (fails, refuses, stops, lambda: done.append("last"))]
    queue.get_flags()
    assert done == ["fails", "last"]
    said = [str(it.exception(0)) for it in futures[:3]]
    assert said == ["it failed: KeyError", "for a reason", "it failed: SystemExit"]


def test_what_is_cancelled_is_not_done(queue: FakeQueue) -> None:
    done: list[int] = []
    assert deferred.submit(lambda: done.append(1)).cancel()
    later = deferred.submit(lambda: done.append(2))
    queue.get_flags()
    assert done == [2] and later.done()


def test_only_so_much_may_wait(queue: FakeQueue) -> None:
    for _ in range(deferred.MOST):
        deferred.submit(lambda: None)
    with pytest.raises(deferred.Busy, match="try again"):
        deferred.submit(lambda: None)
    queue.get_flags()
    deferred.submit(lambda: None)


def test_another_packs_wrapper_around_ours_stays_and_keeps_working(queue: FakeQueue) -> None:
    future = deferred.submit(lambda: 1)
    ours, seen = queue.get_flags, []

    def theirs(reset: bool = True) -> object:
        seen.append(reset)
        return ours(reset=reset)

    queue.get_flags = theirs
    queue.get_flags()
    assert future.result(0) == 1 and queue.get_flags is theirs
    second = deferred.submit(lambda: 2)
    queue.get_flags()
    assert second.result(0) == 2 and queue.get_flags is theirs
    assert seen == [True, True]
    del queue.get_flags

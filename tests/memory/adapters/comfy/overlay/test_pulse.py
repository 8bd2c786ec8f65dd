"""The thread that beats while somebody watches."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from lowtide.memory.adapters.comfy.overlay import pulse
from lowtide.memory.adapters.comfy.overlay.pulse import Pulse

RUNNING, IDLE, GRACE = 0.02, 0.2, 0.15


class Rig:
    """A pulse, and what it looks at."""

    def __init__(self) -> None:
        self.watched, self.running = True, True
        self.at: list[float] = []
        self.fails = False
        self.pulse = Pulse(lambda: self.watched, lambda: self.running, self.beat)

    def beat(self) -> None:
        self.at.append(time.monotonic())
        if self.fails:
            raise RuntimeError("as planned")

    def wait(self, count: int, seconds: float = 5.0) -> None:
        until = time.monotonic() + seconds
        while len(self.at) < count and time.monotonic() < until:
            time.sleep(0.002)
        assert len(self.at) >= count

    def gone(self, seconds: float = 5.0) -> bool:
        until = time.monotonic() + seconds
        while self.pulse.alive and time.monotonic() < until:
            time.sleep(0.002)
        return not self.pulse.alive and not threads()


def threads() -> list[threading.Thread]:
    return [it for it in threading.enumerate() if it.name == pulse.NAME and it.is_alive()]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    for name, value in (("RUNNING", RUNNING), ("IDLE", IDLE), ("GRACE", GRACE)):
        monkeypatch.setattr(pulse, f"{name}_SECONDS", value)
    found = Rig()
    yield found
    found.pulse.stop()
    assert found.gone()


def gaps(at: list[float]) -> list[float]:
    return [later - one for one, later in itertools.pairwise(at)]


def test_no_thread_before_anyone_asks(rig: Rig) -> None:
    assert not rig.pulse.alive and not threads()


@pytest.mark.parametrize(("running", "seconds"), [(True, RUNNING), (False, IDLE)])
def test_never_more_often_than_allowed(rig: Rig, running: bool, seconds: float) -> None:
    rig.running = running
    rig.pulse.wake()
    for _ in range(40):  # however often it is woken
        rig.pulse.wake()
        time.sleep(0.001)
    rig.wait(3)
    assert min(gaps(rig.at)) >= seconds * 0.95
    assert len(threads()) == 1


def test_a_run_that_begins_is_seen_at_once(rig: Rig) -> None:
    rig.running = False
    rig.pulse.wake()
    rig.wait(1)
    time.sleep(RUNNING)
    rig.running = True
    rig.pulse.wake()
    rig.wait(2)
    assert rig.at[1] - rig.at[0] < IDLE


def test_without_a_watcher_it_does_nothing_and_ends(rig: Rig) -> None:
    rig.watched = False
    rig.pulse.wake()
    assert rig.gone() and rig.at == []
    rig.watched = True
    rig.pulse.wake()
    rig.wait(2)
    rig.watched = False
    assert rig.gone()
    count = len(rig.at)
    time.sleep(3 * RUNNING)
    assert len(rig.at) == count


def test_a_tab_that_is_connected_within_the_grace_period_is_served(rig: Rig) -> None:
    rig.watched = False
    rig.pulse.wake()
    time.sleep(GRACE / 3)
    rig.watched = True
    rig.wait(1)


def test_a_beat_that_fails_is_told_of_once_and_the_next_comes(rig: Rig, caplog: Any) -> None:
    rig.fails = True
    rig.pulse.wake()
    rig.wait(4)
    assert [it.message for it in caplog.records].count(
        "Lowtide could not take a sample for the overlay"
    ) == 1


def test_what_the_beats_cost_is_counted(rig: Rig) -> None:
    rig.pulse.wake()
    rig.wait(3)
    rig.pulse.stop()
    assert rig.pulse.beats >= 3
    assert 0 <= rig.pulse.seconds < 1

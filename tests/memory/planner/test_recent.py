"""What was met lately is at hand, bounded, and by its whole name."""

from __future__ import annotations

from pathlib import Path

from lowtide.memory.planner import recent
from lowtide.memory.planner.recent import Recent, RecentTraces
from lowtide.memory.planner.trace import Trace, key_of


def trace() -> Trace:
    return Trace((("", "Linear", -1),), (), (8,), 1, (), (), ())


def test_the_ones_used_last_stay() -> None:
    held: Recent[int] = Recent(2)
    held.put("a", 1)
    held.put("b", 2)
    assert held.get("a") == 1
    held.put("c", 3)
    assert (held.get("a"), held.get("b"), held.get("c")) == (1, None, 3)
    held.clear()
    assert held.get("a") is None


def test_a_trace_is_recorded_once_and_read_once(tmp_path: Path, monkeypatch) -> None:
    recent.traces.clear()
    made: list[int] = []

    def record() -> Trace:
        made.append(1)
        return trace()

    question = {"of": "this test", "folder": str(tmp_path)}
    key = key_of(question)
    store = RecentTraces(tmp_path)
    assert not store.has(key)
    first = store.recorded(question, record)
    assert store.has(key) and store.recorded(question, record) is first
    recent.traces.clear()
    assert store.has(key), "it is on disk"
    again = store.recorded(question, record)
    assert again is not first and made == [1]
    monkeypatch.setattr(RecentTraces, "find", None)  # not read again
    assert store.recorded(question, record) is again

"""Kept traces: found again by what they depend on, never stale, rebuilt when damaged."""

from __future__ import annotations

import os

import pytest
from lowtide.memory.planner.cache import REMEMBERED, TraceCache, shared
from lowtide.memory.planner.trace import TraceError, dump, key_of, load
from lowtide.tests.memory.planner.made import made


def test_a_trace_comes_back_as_it_was(tmp_path):
    trace = made()
    again = load(dump(trace, "k"), "k")
    for name in ("modules", "weights", "storages", "inputs", "operations", "events", "outputs"):
        assert getattr(again, name) == getattr(trace, name), name


def test_it_is_recorded_once(tmp_path):
    store, calls = TraceCache(tmp_path / "new"), []

    def record():
        calls.append(1)
        return made()

    question = {"weights": [("a", (2, 2), "float16")], "torch": "2.9"}
    store.recorded(question, record)
    TraceCache(tmp_path / "new").recorded(dict(reversed(question.items())), record)
    assert len(calls) == 1
    for changed in ({"torch": "2.10"}, {"weights": [("a", (2, 2), "float32")]}, {"more": 1}):
        store.recorded({**question, **changed}, record)
    assert len(calls) == 4


def test_the_last_few_are_not_read_again(tmp_path):
    store, found = TraceCache(tmp_path), []
    for number in range(REMEMBERED + 1):
        found.append(store.recorded({"x": number}, made))
    for path in tmp_path.glob("*.trace"):
        path.unlink()
    assert store.recalled(key_of({"x": REMEMBERED})) is found[-1]
    assert store.recalled(key_of({"x": 1})) is found[1]
    assert store.recalled(key_of({"x": 0})) is None
    store.clear()
    assert store.recalled(key_of({"x": 1})) is None


def test_whether_one_is_there_is_told_without_reading_it(tmp_path):
    store, question = TraceCache(tmp_path), {"x": 1}
    key = key_of(question)
    assert not store.has(key)
    store.recorded(question, made)
    assert store.has(key) and TraceCache(tmp_path).has(key)
    next(iter(tmp_path.glob("*.trace"))).unlink()
    assert store.has(key) and not TraceCache(tmp_path).has(key)


def test_a_process_has_one_cache_for_a_folder(tmp_path):
    assert shared(tmp_path) is shared(tmp_path)
    assert shared(tmp_path) is not shared(tmp_path / "other")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other key", "old format"])
def test_a_damaged_file_is_recorded_anew(tmp_path, damage):
    store, question = TraceCache(tmp_path), {"x": 1}
    store.recorded(question, made)
    (path,) = tmp_path.glob("*.trace")
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-20]
    elif damage == "flipped":
        data[len(data) // 2] ^= 0xFF
    elif damage == "empty":
        data = bytearray()
    elif damage == "other key":
        data = bytearray(dump(made(), "another"))
    else:
        data[:17] = data[:17].replace(b"0", b"9")
    path.write_bytes(data)
    with pytest.raises(TraceError):
        load(bytes(data), key_of(question))
    assert store.find(key_of(question)) is None
    assert not path.exists()
    calls = []
    store = TraceCache(tmp_path)
    store.recorded(question, lambda: calls.append(1) or made())
    assert calls
    assert store.find(key_of(question)) is not None


def test_the_oldest_go_when_there_are_too_many(tmp_path):
    import os

    store = TraceCache(tmp_path)
    for number in range(4):
        store.keep(str(number), made())
        os.utime(tmp_path / f"{number}.trace", (number, number))
    store.most_bytes = store.size() // 4 * 3
    store.find("0")  # used just now
    store.keep("4", made())
    assert store.find("1") is None
    assert store.find("0") is not None
    assert store.find("4") is not None
    assert store.clear() > 0
    assert store.size() == 0


def test_a_folder_that_takes_nothing_costs_nothing_else(tmp_path):
    place = tmp_path / "file"
    place.write_text("no folder")
    assert TraceCache(place).recorded({"x": 1}, made).storages == made().storages


def test_what_a_killed_process_left_half_written_goes(tmp_path):
    store = TraceCache(tmp_path)
    old, new = tmp_path / "a.part", tmp_path / "b.part"
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (1, 1))
    store.recorded({"x": 1}, made)
    assert not old.exists() and new.exists(), "another process may be writing it"
    store.clear()
    assert list(tmp_path.iterdir()) == []

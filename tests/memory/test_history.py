"""The learning store: what is kept, how much of it, and what it answers."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from lowtide.memory import history_rows
from lowtide.memory.history import LISTED, MOST_WAITING, History, Key, Row, describe
from lowtide.memory.history_rows import OUT_OF_MEMORY
from lowtide.memory.units import GIB, MIB

KEY = Key("RTX, 8 GB", "SDXL 5 GB", "1x4x128x128", "balanced", 16384)


def row(at: float = 0.0, key: Key = KEY, stage: str = "denoising", **more: object) -> Row:
    return Row(key, stage, "balanced", at, **{"predicted": 1000, "measured": 1200, **more})


@pytest.fixture(params=["file", "memory"])
def history(request: pytest.FixtureRequest, tmp_path: Path) -> History:
    return History(tmp_path / "h.sqlite3" if request.param == "file" else None)


def test_what_was_learnt_is_there_for_the_next_process(tmp_path: Path) -> None:
    first = History(tmp_path / "a b#c%20?" / "h.sqlite3")
    assert first.add([row(at) for at in range(20)])
    first.close()
    again = History(first.path)
    assert 1.15 < again.correction(KEY, "denoising") < 1.2
    assert again.correction(KEY, "decoding") == 1.0
    assert again.margin(KEY, "denoising", 0.1) < 0.05


def test_what_was_predicted_for_a_device_can_be_forgotten(history: History) -> None:
    other = Key("another", KEY.model, KEY.shapes, KEY.plan, KEY.size)
    both = [row(key=key, predicted_seconds=1.0, seconds=2.0) for key in (KEY, other)]
    history.add(both * 5)
    history.outdate(KEY.gpu)
    for of in ("bytes", "seconds"):
        assert history.correction(KEY, "denoising", of=of) == 1.0
        assert history.correction(other, "denoising", of=of) > 1.1
    assert [it.measured for it in history.of_model(KEY.gpu, KEY.model)] == [1200] * 5
    assert history.outcome(KEY, "balanced") == "fits"


def test_answers_follow_the_key(history: History) -> None:
    history.add([row(at) for at in range(20)])
    other_gpu = Key("another", KEY.model, KEY.shapes, KEY.plan, KEY.size)
    other_shape = Key(KEY.gpu, KEY.model, "1x4x64x64", KEY.plan, 4096)
    assert history.correction(other_gpu, "denoising") == 1.0
    assert 1.1 < history.correction(other_shape, "denoising") < 1.2
    history.add([row(20.0, other_shape, measured=900)] * 20)
    assert history.correction(other_shape, "denoising") < 0.95
    assert history.correction(KEY, "denoising") > 1.15, "its own runs count more than the latest"


def test_the_latest_runs_count(history: History) -> None:
    history.add([row(at) for at in range(100)])
    history.add([row(100.0 + at, measured=1000) for at in range(20)])
    assert abs(history.correction(KEY, "denoising") - 1.0) < 0.01


def test_seconds_are_corrected_apart(history: History) -> None:
    history.add([row(at, predicted_seconds=1.0, seconds=2.0) for at in range(20)])
    assert history.correction(KEY, "denoising", of="seconds") > 1.8
    assert history.correction(KEY, "denoising") < 1.2


def test_a_level_that_ran_out_is_remembered(history: History) -> None:
    history.add([row(1.0, outcome=OUT_OF_MEMORY, free=8 * GIB, measured=None)])
    larger = Key(KEY.gpu, KEY.model, "1x4x256x256", "whatever", 65536)
    assert history.outcome(KEY, "balanced", free=8 * GIB) == OUT_OF_MEMORY
    assert history.outcome(larger, "balanced", free=8 * GIB) == OUT_OF_MEMORY
    assert history.outcome(KEY, "balanced", free=12 * GIB) is None
    assert history.outcome(KEY, "ultra", free=8 * GIB) is None
    assert history.outcome(KEY, "balanced", free=8 * GIB, stage="decoding") is None
    history.add([row(2.0, free=8 * GIB)])
    assert history.outcome(KEY, "balanced", free=8 * GIB) == "fits"
    assert history.outcome(larger, "balanced", free=8 * GIB) == OUT_OF_MEMORY


def test_rows_are_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    history = History(tmp_path / "h.sqlite3", most_rows=50)
    for at in range(120):
        history.add([row(at)])
    summary = history.summary()
    assert (summary["rows"], summary["oldest"], summary["latest"]) == (50, 70.0, 119.0)


def test_bytes_are_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite3"
    history = History(path, most_bytes=MIB)
    long = Key("g" * 160, "m" * 160, "s" * 160, "p" * 160)
    for start in range(0, 12_000, 200):
        assert history.add([row(start + number, long) for number in range(200)])
    summary = history.summary()
    assert summary["latest"] == 11_999.0 and summary["oldest"] > 5000
    assert 300 < summary["rows"] < 1500 and summary["bytes"] <= MIB
    history.close()
    assert sum(it.stat().st_size for it in tmp_path.iterdir()) <= 1.3 * MIB


def test_what_waits_in_memory_is_bounded() -> None:
    history = History(None)
    for start in range(0, MOST_WAITING * 2, 500):
        history.add([row(start + number) for number in range(500)])
    assert history.summary()["rows"] == MOST_WAITING
    assert history.summary()["oldest"] == MOST_WAITING


def test_names_are_clipped_and_wide_characters_kept(history: History) -> None:
    history.add([row(key=Key("g", "Модель " * 100, "s", "p"))])
    (run,) = history.summary()["runs"]
    assert run["model"] == ("Модель " * 100)[: history_rows.TEXT_LIMIT]


def test_a_summary_is_bounded_plain_and_latest_first(history: History) -> None:
    for number in range(LISTED + 30):
        history.add([row(number, Key("g", f"model {number}", "s", "p"))])
    summary = history.summary(10_000)
    assert len(summary["runs"]) == LISTED and summary["rows"] == LISTED + 30
    assert json.loads(json.dumps(summary)) == summary
    first = summary["runs"][0]
    assert first["model"] == f"model {LISTED + 29}"
    assert (first["predicted"], first["measured"], first["runs"]) == (1000, 1200, 1)
    assert first["correction"] > 1.0
    assert history.summary(3)["runs"] == summary["runs"][:3]
    text = describe(summary)
    assert "1.2 KB at the last one (1000 B foretold), predictions times 1.06" in text


def test_a_summary_counts_what_ran_out(history: History) -> None:
    history.add([row(1.0, outcome=OUT_OF_MEMORY), row(2.0)])
    (run,) = history.summary()["runs"]
    assert (run["runs"], run["out_of_memory"]) == (2, 1)
    assert "out of memory 1 times" in describe(history.summary())


def test_reset_forgets_everything_and_goes_on(history: History) -> None:
    history.add([row(at) for at in range(500)])
    assert history.reset() == 500
    assert history.summary()["rows"] == 0 and history.correction(KEY, "denoising") == 1.0
    history.add([row(1.0)])
    assert history.summary()["rows"] == 1
    assert "model" not in describe(History(None).summary())


def test_reset_leaves_nothing_readable_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite3"
    history = History(path)
    history.add([row(key=Key("g", f"a name to forget {n}", "s", "p")) for n in range(3000)])
    history.reset()
    history.close()
    assert path.stat().st_size < 64 << 10
    assert b"a name to forget" not in b"".join(it.read_bytes() for it in tmp_path.iterdir())


def test_a_set_of_rows_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    history = History(tmp_path / "h.sqlite3")
    with pytest.raises(sqlite3.Error):
        table = history_rows.Table.in_memory()
        table.insert([row(1.0), row(2.0, seconds={"no": "number"})], most=10)  # type: ignore[arg-type]
    assert table.count() == 0
    assert history.add([row(1.0), row(2.0)]) and history.summary()["rows"] == 2


def test_no_column_could_hold_a_prompt_or_a_path() -> None:
    table = history_rows.Table.in_memory()
    columns = {found[1] for found in table.connection.execute("PRAGMA table_info(runs)")}
    assert columns == {
        "id", "at", "gpu", "model", "shapes", "plan", "size", "stage", "level", "outcome",
        "predicted", "measured", "reserved", "predicted_seconds", "seconds", "free",
    }  # fmt: skip

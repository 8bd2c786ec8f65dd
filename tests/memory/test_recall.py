"""One reading answers as the history does."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from lowtide.memory.history import History, Key, Row
from lowtide.memory.history_rows import FITS, OUT_OF_MEMORY
from lowtide.memory.recall import Recall

PLANS = ("none", "balanced", "balanced, vae_tile_size=256")
STAGES = ("denoising", "decoding")


def rows(count: int, seed: int) -> list[Row]:
    chance = random.Random(seed)
    found = []
    for number in range(count):
        plan, size = chance.choice(PLANS), chance.choice((64, 128))
        found.append(
            Row(
                Key("gpu", chance.choice(("one", "other")), f"shape {size}", plan, size),
                chance.choice(STAGES),
                plan.partition(",")[0],
                float(number),
                chance.choice((FITS, FITS, FITS, OUT_OF_MEMORY, "failed")),
                predicted=1000,
                measured=chance.randint(700, 1500),
                predicted_seconds=2.0,
                seconds=chance.uniform(1, 4),
                free=chance.choice((None, 4000, 8000)),
            )
        )
    return found


@pytest.mark.parametrize("seed", range(3))
def test_it_answers_as_the_history_does(tmp_path: Path, seed: int) -> None:
    history = History(tmp_path / "history.sqlite3")
    history.add(rows(90, seed))
    recall = Recall(history)
    asked = 0
    for model in ("one", "other", "unknown"):
        for plan in PLANS:
            for size in (64, 128, 256):
                key, level = Key("gpu", model, f"shape {size}", plan, size), plan.partition(",")[0]
                for stage in STAGES:
                    assert recall.correction(key, stage) == history.correction(key, stage)
                    of_time = {"of": "seconds"}
                    assert recall.correction(key, stage, **of_time) == history.correction(
                        key, stage, **of_time
                    )
                    assert recall.margin(key, stage, 0.03) == history.margin(key, stage, 0.03)
                    for free in (None, 3000, 9000):
                        assert recall.outcome(
                            key, level, free=free, stage=stage
                        ) == history.outcome(key, level, free=free, stage=stage)
                        asked += 1
    assert asked == 162
    assert recall.correction(Key("gpu", "one", "shape 64", "none", 64), "denoising") != 1.0


def test_the_file_is_read_once_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(tmp_path / "history.sqlite3")
    history.add(rows(10, 0))
    read, plain = [], History._from_file
    monkeypatch.setattr(History, "_from_file", lambda it, how: read.append(1) or plain(it, how))
    recall = Recall(history)
    for stage in STAGES:
        for plan in PLANS:
            recall.correction(Key("gpu", "one", "shape 64", plan, 64), stage)
            recall.outcome(Key("gpu", "one", "shape 64", plan, 64), plan, stage=stage)
    assert len(read) == 1

"""Predicted beside measured, with the error and the budget."""

from __future__ import annotations

import json

import pytest
from lowtide.memory import verified
from lowtide.memory.units import GIB
from lowtide.memory.verified import Verified


@pytest.fixture(autouse=True)
def none_before() -> None:
    verified.begin()


def test_the_error_is_positive_where_too_much_was_predicted() -> None:
    assert Verified("denoising", 11, 10).error == pytest.approx(0.1)
    assert Verified("denoising", 9, 10).error == pytest.approx(-0.1)
    assert Verified("denoising", None, 10).error is None
    assert Verified("denoising", 9, None).error is None
    assert Verified("denoising", 9, 0).error is None


def test_each_stage_is_a_line() -> None:
    said = [
        Verified("text_encoding", GIB).text(),
        Verified("denoising", 3 * GIB, 2 * GIB).text(),
        Verified("decoding", None, GIB).text(),
    ]
    assert said == [
        "text encoding: 1.00 GB predicted",
        "denoising: 2.00 GB measured (3.00 GB predicted, +50.0%)",
        "decoding: 1.00 GB measured, not predicted",
    ]


@pytest.mark.parametrize(
    ("budget", "said"),
    [(2 * GIB, "budget of 2.00 GB: kept (2.00 GB used)"),
     (GIB, "budget of 1.00 GB: exceeded by 1.00 GB (2.00 GB used)")],
)  # fmt: skip
def test_a_budget_is_kept_or_not(budget: int, said: str) -> None:
    stages = [Verified("text_encoding", None, GIB), Verified("denoising", 3 * GIB, 2 * GIB)]
    lines = verified.text(stages, budget)
    assert [line.strip() for line in lines] == [stages[1].text(), said]
    assert verified.text([Verified("denoising", GIB)], budget) == ["  denoising: 1.00 GB predicted"]


def test_runs_are_kept_until_the_next_begins() -> None:
    verified.note("empty", [])
    verified.note("unet", [Verified("denoising", 3 * GIB, 2 * GIB)], 2 * GIB)
    verified.note("other", [Verified("denoising", None, 2 * GIB)])
    assert [run.name for run in verified.runs()] == ["unet", "other"]
    lines = verified.of_runs(verified.runs())
    assert lines[0] == "unet:" and len(lines) == 3, "what nobody foretold is left out"
    values = json.loads(json.dumps([run.to_dict() for run in verified.runs()]))
    assert values[0]["budget"] == 2 * GIB
    assert values[0]["stages"] == [
        {"stage": "denoising", "predicted": 3 * GIB, "measured": 2 * GIB, "error": 0.5}
    ]
    for number in range(verified.MOST_RUNS + 3):
        verified.note(str(number), [Verified("denoising", None, 1)])
    assert len(verified.runs()) == verified.MOST_RUNS
    verified.begin()
    assert verified.runs() == []

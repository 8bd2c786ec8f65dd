"""Random budgets in a process of the CUDA flavour: kept, with the same images, moving no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from lowtide.bench import budgets, cli
from lowtide.memory.child import command

COUNT = 4


def main(arguments: list[str]) -> int:
    """The bench on the few kinds of run, in a process of its own."""
    budgets.CASES = budgets.FEW  # type: ignore[misc]
    budgets.bench_budgets.__defaults__ = (COUNT, budgets.SEED, budgets.FEW, lambda _: None)
    return cli.main(arguments)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    file = tmp_path_factory.mktemp("budgets") / "rows.json"
    arguments = ("bench", "--budgets", str(COUNT), "--simulate", "cuda", "--json", str(file))
    done = subprocess.run(
        command("tests.bench.test_budgets", *arguments),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert file.exists(), done.stderr[-2000:]
    print(done.stdout, file=sys.stderr)
    return json.loads(file.read_text())["rows"]


@pytest.mark.slow
def test_every_budget_is_kept_with_the_same_image(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == COUNT
    assert [row["wrong"] for row in rows] == [""] * COUNT
    for row in rows:
        assert 0 < row["peak"] <= row["budget"]
        assert row["peak"] > 0.5 * row["budget"] or row["moved"] == 0


@pytest.mark.slow
def test_where_a_mode_of_diffusers_fits_it_moves_no_less(rows: list[dict[str, Any]]) -> None:
    rivals = [row for row in rows if row["rival"]]
    assert rivals
    assert all(row["moved"] <= row["rival_moved"] + (96 << 10) for row in rivals)


def test_what_is_not_as_promised_fails_the_command() -> None:
    row = budgets.Budgeted("a run", 100, peak=90)
    assert not budgets.Budgets([row]).failed
    row.wrong = "5 B over"
    result = budgets.Budgets([row])
    assert result.failed and "1 budgets, 1 with something wrong" in result.text()


def test_a_device_that_counts_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--budgets", "3", "--device", "cpu"]) == 1
    assert "takes --simulate" in capsys.readouterr().err

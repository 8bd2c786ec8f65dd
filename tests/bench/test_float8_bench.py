"""The figures of FP8 storage: the limits they must keep, and the command that prints them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lowtide.bench import cli, float8
from lowtide.bench.float8 import Float8Bench, Float8Row, measure
from lowtide.memory.adapters.synthetic import DENOISERS


@pytest.mark.slow
@pytest.mark.parametrize("family", DENOISERS)
def test_a_forward_loses_under_two_percent_and_half_of_a_casts(family: str) -> None:
    row = measure(family)
    assert 0 < row.companded < 0.02
    assert row.companded < row.unscaled / 2
    assert row.companded < row.scaled / 2
    assert row.after < 0.6 * row.before


ROW = Float8Row("sd15", 40, 100 << 20, 55 << 20, 0.061, 0.0419, 0.0105, 0.5)


def test_the_command_prints_and_writes_a_row_for_each_family(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(float8, "measure", lambda family: ROW)
    path = tmp_path / "figures.json"
    assert cli.main(["bench", "--float8", "--json", str(path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| sd15")]
    assert len(lines) == len(DENOISERS)
    assert "100.0 MB" in lines[0]
    assert "6.10%" in lines[0]
    assert "1.05%" in lines[0]
    assert json.loads(path.read_text())["rows"][0]["companded"] == 0.0105


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--model", "sdxl"], "--model"), (["--peers"], "--peers"), (["--size", "512"], "--size")],
)
def test_options_of_other_benches_are_refused(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--float8", *arguments]) == 1
    assert f"{named} has no effect with --float8" in capsys.readouterr().err


def test_the_report_is_a_table() -> None:
    text = Float8Bench((ROW,)).text()
    assert text.startswith("| shape")
    assert "4.8 s" in text

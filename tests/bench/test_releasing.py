"""The benchmark of giving memory back: its medians, its limits, and one short run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lowtide.bench import cli
from lowtide.bench.releasing import ALWAYS, NAIVE, PARTS, PRESSURE, STOCK, Releasing, summary
from lowtide.tests.hosts.comfyui import survey

FOUND, REFUSED = survey()
NAMES = (STOCK, NAIVE, PRESSURE, ALWAYS)


def measured(
    naive: float = 1.0,
    pressure: float = 0.0,
    always: float = 0.1,
    loading: float = 0.0,
    allocated: int = 0,
) -> Any:
    """What the script would print where a stock prompt takes two seconds, more each round."""
    added = {STOCK: 0.0, NAIVE: naive, PRESSURE: pressure, ALWAYS: always}
    rounds = [{name: 2 + turn + added[name] for name in NAMES} for turn in range(9)]
    left = {name: {"allocated": 100, "reserved": 200} for name in NAMES}
    left[ALWAYS] = {"allocated": allocated, "reserved": 0}
    again = [{**dict.fromkeys(NAMES, 0.0), ALWAYS: loading}] * len(rounds)
    freed = {name: [dict.fromkeys(PARTS, 0.01)] * 3 for name in NAMES}
    freed[STOCK] = [dict.fromkeys(PARTS, 0.01), dict.fromkeys(PARTS)]
    found = {"rounds": rounds, "loading": again, "left": left, "freed": freed}
    return {**found, "clock": "CPU"}


def failures(**more: Any) -> list[str]:
    return Releasing("npu:0", summary("1.0", measured(**more))).failures()


def test_each_limit_is_checked() -> None:
    assert failures() == []
    assert "a fifth" in failures(always=0.3)[0]
    assert failures(naive=2.0, always=0.3) == []
    assert "a fifth" in failures(always=0.3, loading=0.2)[0]
    assert "hundredth" in failures(pressure=0.1)[0]
    assert "leaves" in failures(allocated=512)[0]
    assert len(failures(always=0.3, pressure=0.1, allocated=512)) == 3


def test_a_part_that_sometimes_stays_stays() -> None:
    rows = {row.name: row for row in summary("1.0", measured())}
    assert set(rows[STOCK].freed.values()) == {None}
    assert set(rows[ALWAYS].freed.values()) == {0.01}
    text = Releasing("npu:0", list(rows.values())).text()
    assert "stays" in text
    assert text.endswith("kept.")


def test_options_that_do_not_go_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--peers"], ["--chart", "x.png"], ["--overhead"]):
        assert cli.main(["bench", "--releasing", *more]) == 1
        assert "takes neither" in capsys.readouterr().err


@pytest.mark.host
@pytest.mark.skipif(not FOUND, reason="; ".join(REFUSED))
def test_a_short_run_in_comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(FOUND[-1].root))
    file = tmp_path / "releasing.json"
    short = ["--pairs", "1", "--size", "64", "--steps", "1", "--simulate", "npu"]
    cli.main(["bench", "--releasing", *short, "--json", str(file)])
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    names = {row["name"] for row in rows}
    assert {(it["version"], it["name"]) for it in rows} == {
        (FOUND[-1].version, name) for name in names
    }
    assert {STOCK, "POST /free", NAIVE, "Lowtide off", PRESSURE, ALWAYS} == names
    for row in rows:
        assert row["seconds"] > 0
        stays = None in row["freed"].values()
        assert stays is (row["name"] not in (ALWAYS, "POST /free")), row
        if not stays:
            assert row["allocated"] == row["reserved"] == 0, row
            assert row["name"] != ALWAYS or max(row["freed"].values()) < 0.5, row

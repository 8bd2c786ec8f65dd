"""The overhead benchmark: its medians, its interval, its verdict, and one short run."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from lowtide.bench import cli, overhead
from lowtide.bench.inside import interval
from lowtide.bench.overhead import OverheadBench, summary
from lowtide.tests.hosts.comfyui import survey

FOUND, REFUSED = survey()


def rounds(share: float, count: int = 60, noise: float = 0.02) -> list[dict[str, float]]:
    """Pairs on a machine that slows down by half on the way."""
    chance = random.Random(1)

    def took(turn: int, more: float) -> float:
        return (1 + turn / count / 2) * more * chance.uniform(1, 1 + noise)

    return [
        {"stock": took(turn, 1), "lowtide": took(turn, 1 + share), "stock again": took(turn, 1)}
        for turn in range(count)
    ]


def row(share: float, **more: float) -> overhead.Overhead:
    return summary("1.0", "another seed", "CPU", rounds(share, **more))


def test_a_machine_that_slows_down_does_not_hide_or_make_an_overhead() -> None:
    for share in (0.0, 0.01, 0.05):
        found = row(share)
        assert found.added == pytest.approx(share, abs=0.004)
        assert found.low <= found.added <= found.high
        assert abs(found.noise) < 0.004


@pytest.mark.parametrize(("share", "exceeded"), [(0.0, False), (0.008, False), (0.05, True)])
def test_the_verdict_is_no_unless_it_is_certain(share: float, exceeded: bool) -> None:
    assert row(share).exceeded is exceeded
    text = OverheadBench("npu:0", [row(share)]).text()
    assert text.endswith("passed." if exceeded else "kept.")


def test_a_few_noisy_pairs_prove_nothing() -> None:
    assert not row(0.02, count=5, noise=0.2).exceeded


def test_the_interval_is_one_of_ranks() -> None:
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    values = [float(number) for number in range(100)]
    low, high = interval(values)
    assert (low, high) == (40.0, 59.0)


def test_options_that_do_not_go_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--overhead", "--peers"], ["--overhead", "--chart", "x.png"]):
        assert cli.main(["bench", *arguments]) == 1
        assert "--overhead takes neither" in capsys.readouterr().err
    assert cli.main(["bench", "--pairs", "3"]) == 1
    assert "--pairs counts" in capsys.readouterr().err


@pytest.mark.host
@pytest.mark.skipif(not FOUND, reason="; ".join(REFUSED))
def test_a_short_run_in_comfyui(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(FOUND[-1].root))
    file = tmp_path / "overhead.json"
    short = ["--pairs", "3", "--size", "64", "--steps", "1", "--simulate", "npu"]
    cli.main(["bench", "--overhead", *short, "--json", str(file)])
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    kinds = ("first prompt", "another seed")
    assert [(it["version"], it["kind"]) for it in rows] == [
        (FOUND[-1].version, kind) for kind in kinds
    ]
    assert all(it["seconds"] > 0 and it["pairs"] == 3 for it in rows)
    # Three pairs prove no percent; a third of a prompt would be a node that works twice.
    assert all(it["added"] < 0.33 for it in rows)
    assert "ComfyUI" in capsys.readouterr().out

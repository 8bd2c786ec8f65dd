"""The levels' bench on the simulated accelerator."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from lowtide.bench import cli
from lowtide.bench.levels import bench_levels
from lowtide.bench.models import MODELS, model_of
from lowtide.bench.places import Place
from lowtide.memory.levels import OptimizationLevel

ALL = [OptimizationLevel(name) for name in ("none", "balanced", "aggressive", "ultra")]


def bench(place: Place, levels: list[OptimizationLevel], **more: Any) -> Any:
    options: dict[str, Any] = {"size": 128, "steps": 2, "dtype": "float16", "progress": False}
    return bench_levels(model_of("tiny-sd15"), place, levels=levels, **{**options, **more})


@pytest.mark.slow
def test_each_level_peaks_no_higher_than_the_one_before(accelerator: Any) -> None:
    result = bench(Place(accelerator.device, accelerator), ALL)
    peaks = [row.peak_allocated for row in result.rows]
    assert peaks[0] > peaks[1] > peaks[2] >= peaks[3] > 0
    assert [(row.left_allocated, row.left_reserved) for row in result.rows] == [(0, 0)] * 4
    assert result.rows[0].ratio == 1
    assert result.rows[0].difference == 0
    for row in result.rows:
        assert set(row.stages) == {"text_encoding", "denoising", "decoding"}
        assert row.peak_allocated >= max(row.stages.values())
        assert row.seconds > 0
        assert row.applied
        assert row.h2d is not None
    # FP8 travels at half the size; of an image that is one tile, so that only weights move.
    small = bench(Place(accelerator.device, accelerator), ALL[2:], size=64)
    assert small.rows[1].h2d < 0.8 * small.rows[0].h2d


def test_rows_come_as_asked_with_none_as_the_reference(accelerator: Any) -> None:
    result = bench(
        Place(accelerator.device, accelerator),
        [OptimizationLevel.AGGRESSIVE, OptimizationLevel.NONE],
        size=64,
        steps=1,
    )
    assert [row.name for row in result.rows] == ["aggressive", "none"]
    assert result.rows[1].ratio == 1
    assert result.rows[0].difference is not None


def test_without_none_nothing_is_compared(accelerator: Any) -> None:
    place = Place(accelerator.device, accelerator)
    result = bench(place, [OptimizationLevel.AGGRESSIVE], size=64, steps=1)
    assert "against none" not in result.text()
    (row,) = result.rows
    assert (row.ratio, row.difference) == (None, None)
    assert row.peak_allocated is not None


def test_out_of_memory_is_a_row_and_leaves_nothing(accelerator: Any) -> None:
    accelerator(capacity="24M")
    place = Place(accelerator.device, accelerator)
    levels = [OptimizationLevel.NONE, OptimizationLevel.ULTRA]
    result = bench(place, levels, size=64, steps=1)
    none, ultra = result.rows
    assert none.error is not None
    assert none.error.startswith("out of memory")
    assert (none.left_allocated, none.left_reserved) == (0, 0)
    assert ultra.error is None
    assert "none: out of memory" in result.text()


def test_the_command_prints_the_table_and_writes_json(
    accelerator: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = dataclasses.replace(MODELS["tiny-sd15"], size=64, steps=1)
    monkeypatch.setitem(MODELS, "tiny-sd15", small)
    file = tmp_path / "figures.json"
    command = ["bench", "--model", "tiny-sd15", "--levels", "none,aggressive"]
    command += ["--simulate", accelerator.flavour, "--capacity", "2G", "--json", str(file)]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert told.startswith("tiny-sd15: 64 px, 1 steps, float16")
    assert "| aggressive |" in told
    assert "Time ratios are against none." in told
    assert "does not count" in told
    figures = json.loads(file.read_text())
    assert figures["simulated"] is True
    assert [row["name"] for row in figures["rows"]] == ["none", "aggressive"]
    assert figures["rows"][0]["peak_allocated"] > figures["rows"][1]["peak_allocated"]


@pytest.mark.slow
def test_the_cpu_alone_shows_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--model", "tiny-sd15", "--size", "64", "--steps", "1"]
    command += ["--levels", "none", "--device", "cpu", "--dtype", "float32"]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert "peak process RAM" in told
    head, _, row = (line for line in told.splitlines() if line.startswith("|"))
    cells = dict(zip(head.split("|"), row.split("|"), strict=True))
    stages = {name.strip(): cell.strip() for name, cell in cells.items()}
    assert all(float(stages[s]) > 0 for s in ("text encoding", "denoising", "decoding"))

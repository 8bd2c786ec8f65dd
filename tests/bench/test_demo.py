"""The demo: the example graph at every level, by the pack's own nodes."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lowtide.bench import chart, cli, demo, native
from lowtide.bench.measure import Row
from lowtide.bench.places import Place
from lowtide.memory.errors import ConfigError
from lowtide.memory.units import MIB
from PIL import Image


def example() -> dict[str, Any]:
    return json.loads(demo.DIFFUSERS_GRAPH.read_text(encoding="utf-8"))


def test_the_example_keeps_its_shape_and_gets_the_demos_widgets() -> None:
    before = example()
    graph = demo.patched(before, "ultra", 96, 3)
    assert before == example()
    by_class = {entry["class_type"]: entry["inputs"] for entry in graph.values()}
    assert by_class["LowtideLoadDiffusersPipeline"]["folder"] == demo.PIPELINE
    assert by_class["LowtideMemoryLevelSelector"]["level"] == "ultra"
    generate = by_class["LowtideGenerate"]
    assert [generate[key] for key in ("width", "height", "steps")] == [96, 96, 3]
    assert by_class["SaveImage"]["filename_prefix"] == "ultra"
    originals = {entry["class_type"]: entry["inputs"] for entry in before.values()}
    assert generate["pipeline"] == originals["LowtideGenerate"]["pipeline"]
    assert generate["prompt"] == originals["LowtideGenerate"]["prompt"]


@pytest.mark.slow
def test_every_level_runs_through_the_nodes(accelerator: Any, tmp_path: Path) -> None:
    place = Place(accelerator.device, accelerator)
    rows = demo.diffusers_rows(place, tmp_path, size=128, steps=2)
    assert [row.name for row in rows] == ["none", "balanced", "aggressive", "ultra"]
    assert [row.error for row in rows] == [None] * 4
    peaks = [row.peak_allocated or 0 for row in rows]
    assert peaks[0] > peaks[1] > peaks[2] >= peaks[3] > 0
    assert [(row.left_allocated, row.left_reserved) for row in rows] == [(0, 0)] * 4
    assert rows[0].difference == 0
    assert all(row.difference is not None and row.difference < 0.5 for row in rows)
    assert rows[2].h2d > rows[0].h2d > 0
    for row in rows:
        with Image.open(tmp_path / f"{row.name}.png") as image:
            assert image.size == (128, 128)


def test_a_level_that_does_not_fit_is_a_row_and_the_rest_goes_on(
    accelerator: Any, tmp_path: Path
) -> None:
    accelerator(capacity="40M")
    rows = demo.diffusers_rows(Place(accelerator.device, accelerator), tmp_path, size=64, steps=1)
    by_name = {row.name: row for row in rows}
    assert by_name["none"].error is not None
    assert by_name["none"].error.startswith("out of memory")
    assert by_name["ultra"].error is None
    assert by_name["ultra"].difference is not None
    assert (accelerator.allocated, accelerator.reserved) == (0, 0)


def test_the_nodes_device_is_the_one_measured(accelerator: Any, tmp_path: Path) -> None:
    import torch

    with pytest.raises(ConfigError, match="the best device here, not on cpu"):
        demo.run_demo(Place(torch.device("cpu", 0)), tmp_path)


def test_the_command_writes_table_chart_and_images(
    accelerator: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def rows(place: Place, out: Path) -> list[Row]:
        return [
            Row("none", peak_allocated=100 * MIB, peak_reserved=120 * MIB, difference=0.0),
            Row("ultra", peak_allocated=10 * MIB, peak_reserved=20 * MIB, difference=0.1),
        ]

    monkeypatch.setattr(demo, "diffusers_rows", rows)
    monkeypatch.setattr(demo, "native_rows", lambda *_: native.Native(reason="no ComfyUI found"))
    out = tmp_path / "made" / "here"
    arguments = ["demo", "--out", str(out), "--simulate", accelerator.flavour]
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out
    assert "| ultra |" in told
    assert "The native graph was not run: no ComfyUI found." in told
    assert "CPU time" in told
    figures = json.loads((out / "levels.json").read_text())
    assert figures["rows"][1]["peak_allocated"] == 10 * MIB
    with Image.open(out / "levels.png") as image:
        assert image.width > 500


def test_without_matplotlib_the_demo_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chart, "find_spec", lambda name: None)
    row = Row("none", peak_allocated=1, peak_reserved=1)
    assert chart.write_chart([row], "title", tmp_path / "chart.png") is False
    assert not (tmp_path / "chart.png").exists()


def _rig(monkeypatch: pytest.MonkeyPatch, found: list[Any], server: Any = None) -> None:
    class Survey:
        @staticmethod
        def survey() -> tuple[list[Any], list[str]]:
            return found, ["no folder matches"]

    def module(name: str) -> Any:
        if name.endswith(".comfyui"):
            return Survey
        made = ModuleType(name)
        made.Server = server  # type: ignore[attr-defined]
        return made

    monkeypatch.setattr(native, "import_module", module)


def test_without_a_comfyui_there_is_a_reason(
    accelerator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _rig(monkeypatch, [])
    result = native.native_rows(Place(accelerator.device, accelerator), tmp_path)
    assert result.reason == "no ComfyUI found; set COMFYUI_PATH (no folder matches)"


def test_a_comfyui_that_does_not_boot_is_a_reason(
    accelerator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        version = "9.9"

    def server(*_: Any, **__: Any) -> Any:
        raise RuntimeError("ended with code 1")

    _rig(monkeypatch, [Installed], server)
    result = native.native_rows(Place(accelerator.device, accelerator), tmp_path)
    assert result.reason == "ComfyUI 9.9: ended with code 1"
    assert result.rows == []


def test_a_real_device_does_not_borrow_the_simulated_rows(tmp_path: Path) -> None:
    import torch

    result = native.native_rows(Place(torch.device("cpu", 0)), tmp_path)
    assert "simulated accelerator only" in result.reason

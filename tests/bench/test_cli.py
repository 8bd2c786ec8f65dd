"""The command line: what it accepts, and how it says no."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lowtide.bench import cli, models, places
from lowtide.bench.levels import LevelBench
from lowtide.bench.measure import Row
from lowtide.memory.device import HostSnapshot
from lowtide.memory.errors import ConfigError, DeviceError
from lowtide.memory.levels import OptimizationLevel
from lowtide.memory.units import GIB


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_all_four_levels_by_default() -> None:
    options = cli.parser().parse_args(["bench"])
    assert [level.value for level in options.levels] == ["none", "balanced", "aggressive", "ultra"]
    assert (options.model, options.size, options.steps, options.dtype) == ("tiny", None, None, None)


def test_levels_are_parsed_once_each_in_order() -> None:
    levels = cli.parse_levels("ultra, NONE,ultra")
    assert levels == [OptimizationLevel.ULTRA, OptimizationLevel.NONE]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--levels", "none,huge"], "unknown level 'huge'; choose one of: auto, fastest"),
        (["bench", "--size", "0"], "not a whole number above 0"),
        (["bench", "--steps", "x"], "not a whole number above 0"),
        (["bench", "--simulate", "tpu"], "invalid choice: 'tpu'"),
        ([], "required"),
    ],
)
def test_bad_options_are_refused_by_the_parser(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--model", "sd99"], "no model is called 'sd99'; choose tiny,"),
        (["bench", "--size", "100"], "--size 100 does not suit"),
        (["bench", "--peers"], "add --model sdxl-small"),
        (
            ["bench", "--peers", "--model", "sdxl-small", "--chart", "x.png"],
            "leave it out with --peers",
        ),
        (["bench", "--device", "cpu", "--simulate", "npu"], "not both"),
        (["bench", "--device", "xpu:3"], "no 'xpu' device here"),
        (["bench", "--device", "quantum"], "names no device"),
    ],
)
def test_what_cannot_be_measured_is_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(capsys, *arguments)


def test_a_flavour_must_exist() -> None:
    with pytest.raises(ConfigError, match="choose npu or cuda"):
        places.choose(simulate="tpu")


def test_an_installed_pack_without_an_accelerator_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(places, "import_module", missing)
    with pytest.raises(DeviceError, match=r"source checkout only; .* --device cpu"):
        places.choose(simulate="npu")


def test_a_broken_simulator_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(places, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="numpy"):
        places.choose(simulate="npu")


def test_info_lists_devices_with_the_level_auto_would_choose(
    accelerator: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    accelerator(capacity="5G")
    assert cli.main(["info", "--json"]) == 0
    found = {device["device"]: device for device in json.loads(capsys.readouterr().out)}
    here = found[str(accelerator.device)]
    assert (here["total"], here["auto"]) == (5 * GIB, "ultra")
    assert "cpu" in found
    assert cli.main(["info"]) == 0
    assert "auto would choose ultra" in capsys.readouterr().out


def test_a_run_larger_than_the_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def host(available: int) -> None:
        snapshot = HostSnapshot(32 * GIB, available, 0, 0, 0)
        monkeypatch.setattr(models, "host_snapshot", lambda: snapshot)

    host(22 * GIB)
    models.check_host_memory(models.model_of("sdxl"), "float16", 1024, on_host=True)
    with pytest.raises(DeviceError, match=r"flux at 1024 px needs about 4\d\.\d\d GB .* 22\.00 GB"):
        models.check_host_memory(models.model_of("flux"), "bfloat16", 1024, on_host=True)
    host(10 * GIB)
    models.check_host_memory(models.model_of("sdxl"), "float16", 1024, on_host=False)
    with pytest.raises(DeviceError, match="sdxl at 1024 px needs"):
        models.check_host_memory(models.model_of("sdxl"), "float16", 1024, on_host=True)
    host(1)
    models.check_host_memory(models.model_of("tiny"), "float16", 256, on_host=True)


def test_the_figures_to_beat_stand_beside_the_published_run_only() -> None:
    sdxl = models.model_of("sdxl")
    assert models.targets_for(sdxl, 1024)["ultra"] == 4.1
    assert models.targets_for(sdxl, 512) == {}
    assert models.targets_for(models.model_of("tiny"), 256) == {}


def test_the_chart_is_a_picture_of_the_rows(tmp_path: Path, accelerator: Any) -> None:
    place = places.choose(simulate=accelerator.flavour)
    rows = [Row("none", peak_allocated=3 * GIB, peak_reserved=4 * GIB, difference=0.0)]
    bench = LevelBench(models.model_of("tiny"), place, 256, 1, "float16", rows)
    cli._draw(bench, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "arguments", [["info"], ["bench", "--device", "cpu"], ["bench"], ["demo"]], ids=" ".join
)
def test_a_capacity_without_the_simulated_accelerator_is_refused(
    accelerator: Any, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    told = error_of(capsys, *arguments, "--capacity", "8G")
    assert "--capacity 8G sets the simulated accelerator's memory" in told
    assert "add --simulate npu" in told


@pytest.mark.parametrize("capacity", ["zzz", "G", "-1G", "0", "infG"])
def test_a_capacity_that_is_no_amount_is_named(
    accelerator: Any, capsys: pytest.CaptureFixture[str], capacity: str
) -> None:
    told = error_of(capsys, "info", "--simulate", accelerator.flavour, f"--capacity={capacity}")
    assert repr(capacity) in told and "give one such as 8G" in told


@pytest.mark.parametrize("option", ["--json", "--chart"])
def test_a_file_that_cannot_be_written_is_refused_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "file").touch()
    command = ["bench", "--simulate", "npu", option]
    for path in (tmp_path / "file" / "x", tmp_path):
        told = error_of(capsys, *command, str(path))
        assert f"{option} {path} cannot be written" in told


@pytest.mark.parametrize("option", ["--json", "--chart"])
def test_the_folders_of_a_file_are_made_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    path = tmp_path / "new" / "deep" / "x"

    def choose(*_: Any) -> None:
        raise ConfigError("seen" if path.parent.is_dir() else "too early")

    monkeypatch.setattr(places, "choose", choose)
    options = cli.parser().parse_args(["bench", option, str(path)])
    with pytest.raises(ConfigError, match="seen"):
        options.command(options)

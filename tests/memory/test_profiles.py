"""A device is measured once per machine and kept in a file; until then published figures stand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lowtide.memory import backend, learning, profile_measure, profiles
from lowtide.memory.device import snapshot
from lowtide.memory.history_rows import Key, Row
from lowtide.memory.profile import DeviceProfile
from lowtide.memory.profile_published import assumed
from lowtide.memory.run_key import gpu_name

VERSION = str(torch.__version__)


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWTIDE_HOME", str(tmp_path / "home"))
    profiles.forget()
    yield tmp_path / "home" / profiles.NAME
    profiles.forget()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Measurements made, by their limit; each gives a profile with made-up figures."""
    found: list[float] = []

    def measure(
        start: DeviceProfile, probe: Callable[[], Any], *, seconds: float = 10.0, **more: Any
    ) -> DeviceProfile:
        found.append(seconds)
        values = {**start.to_dict(), "flops": 123.0, "measured": seconds > 1, "source": "made up"}
        return DeviceProfile.from_dict(values)

    monkeypatch.setattr(profile_measure, "measure", measure)
    return found


def test_a_device_is_measured_once_and_the_next_process_knows(
    accelerator: Any, counted: list[float], file: Path
) -> None:
    name = snapshot(accelerator.device).name
    assert not profiles.known(name, VERSION).measured, "knowing does not measure"
    first = profiles.measured(accelerator.device)
    assert first.flops == 123.0 and counted == [10.0]
    assert profiles.measured(accelerator.device) == first and len(counted) == 1
    profiles.forget()
    assert profiles.known(name, VERSION) == first
    assert profiles.measured(accelerator.device) == first and len(counted) == 1
    assert profiles.known(name, "another torch") == assumed(name)
    assert profiles.known("another device", VERSION) == assumed("another device")
    assert list(json.loads(file.read_text())) == [f"{name}, torch {VERSION}"]


def test_half_a_measurement_is_used_and_not_kept(
    accelerator: Any, counted: list[float], file: Path
) -> None:
    found = profiles.measured(accelerator.device, seconds=0.5)
    assert found.flops == 123.0 and not found.measured and not file.exists()
    assert profiles.measured(accelerator.device) == found and len(counted) == 1
    profiles.forget()
    profiles.measured(accelerator.device)
    assert len(counted) == 2, "the next process tries again"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"x": 3}', '{"x": {"name": "y"}}', "\x00\x01"]
)
def test_a_damaged_file_is_as_none(
    accelerator: Any, counted: list[float], file: Path, text: str
) -> None:
    file.parent.mkdir()
    file.write_text(text, encoding="utf-8")
    assert profiles.measured(accelerator.device).flops == 123.0
    assert len(json.loads(file.read_text())) == 1


def test_other_devices_profiles_stay(accelerator: Any, counted: list[float], file: Path) -> None:
    file.parent.mkdir()
    others = {f"card {n}": assumed(f"card {n}").to_dict() for n in range(profiles.MOST + 5)}
    others["broken"] = {}
    file.write_text(json.dumps(others), encoding="utf-8")
    profiles.measured(accelerator.device)
    kept = list(json.loads(file.read_text()))
    assert len(kept) == profiles.MOST and kept[-2] == f"card {profiles.MOST + 4}"
    assert [it.name for it in file.parent.iterdir()] == [profiles.NAME]


def test_a_folder_that_cannot_be_written_is_said(
    accelerator: Any, counted: list[float], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.parent.write_text("a file", encoding="utf-8")
    assert profiles.measured(accelerator.device).flops == 123.0
    assert "measured again by the next process" in caplog.text and "LOWTIDE_HOME" in caplog.text
    assert profiles.measured(accelerator.device).flops == 123.0 and len(counted) == 1


@pytest.mark.parametrize("halted", [False, True])
def test_aside_only_a_whole_measurement_counts(
    accelerator: Any, counted: list[float], file: Path, halted: bool
) -> None:
    device = backend.device_of(accelerator.device)
    name = snapshot(device).name

    def aside(halted: bool) -> bool:
        return profiles.measured_aside(device, object, longest=0.1, halted=lambda: halted)

    assert aside(halted) is not halted
    assert profiles.known(name, VERSION).measured is not halted
    assert file.exists() is not halted
    assert aside(False) and len(counted) == 1 + halted, "once measured, never again"


def test_aside_half_a_measurement_is_dropped(
    accelerator: Any, counted: list[float], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = backend.device_of(accelerator.device)
    monkeypatch.setattr(profile_measure, "measure", lambda start, probe, **more: start)
    assert not profiles.measured_aside(device, object, longest=0.1, halted=lambda: False)
    assert profiles.known(snapshot(device).name, VERSION) == assumed(snapshot(device).name)
    assert not file.exists()


def test_what_published_figures_foretold_corrects_nothing_any_more(
    accelerator: Any, counted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(learning.SWITCH, raising=False)
    device = backend.device_of(accelerator.device)
    key = Key(gpu_name(snapshot(device), VERSION), "model", "shape", "plan", 1)
    row = Row(key, "denoising", "none", 1.0, predicted=100, measured=200)
    learning.log(lambda: [row])
    learning.expect(key, "denoising", 100)
    profiles.measured(device)
    assert learning.history().correction(key, "denoising") == 1.0
    assert learning.expected(key, "denoising") == (None, None)
    (left,) = learning.history().of_model(key.gpu, "model")
    assert (left.predicted, left.measured) == (None, 200)


@pytest.mark.parametrize(
    ("word", "may"), [(None, True), ("", True), ("on", True), ("off", False), (" 0 ", False)]
)
def test_measuring_unasked_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch, word: str | None, may: bool
) -> None:
    monkeypatch.delenv("LOWTIDE_PROFILE", raising=False)
    if word is not None:
        monkeypatch.setenv("LOWTIDE_PROFILE", word)
    assert profiles.by_itself() is may

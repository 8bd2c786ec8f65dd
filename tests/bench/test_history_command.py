"""``python -m lowtide history``: see what was learnt, and delete it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from lowtide.bench import cli, history
from lowtide.memory.history import History, Key, Row
from lowtide.memory.history_file import NAME


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWTIDE_HOME", str(tmp_path / "home"))
    key = Key("gpu", "SDXL, 4.78 GB", "1x4x128x128", "ultra", 16384)
    found = History(tmp_path / "home" / NAME)
    found.add([Row(key, "denoising", "ultra", 1.0, predicted=1 << 30, measured=1 << 31)] * 3)
    found.close()
    return tmp_path / "home" / NAME


def test_it_is_shown(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    assert cli.main(["history"]) == 0
    told = capsys.readouterr().out
    assert str(path) in told
    assert "SDXL, 4.78 GB, 1x4x128x128, ultra, denoising: 3 runs, 2.00 GB" in told
    assert "(1.00 GB foretold), predictions times 1.52" in told


def test_it_is_shown_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["history", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 3 and found["runs"][0]["measured"] == 1 << 31


def test_it_is_deleted(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["history", "--reset"]) == 0
    assert capsys.readouterr().out == "3 rows deleted\n"
    assert cli.main(["history", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 0


def test_another_folder_is_looked_at(
    capsys: pytest.CaptureFixture[str], path: Path, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOWTIDE_HOME", str(tmp_path / "elsewhere"))
    assert cli.main(["history", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 0
    assert not (tmp_path / "elsewhere").exists(), "looking makes no file"
    assert cli.main(["history", "--json", "--folder", str(path.parent)]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 3


def test_what_is_no_folder_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["history", "--folder", str(tmp_path / "none")]) == 1
    assert "is no folder; give the one with" in capsys.readouterr().err
    monkeypatch.delenv("LOWTIDE_HOME")
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    assert cli.main(["history"]) == 1
    assert "install platformdirs" in capsys.readouterr().err


def test_benches_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOWTIDE_HISTORY", raising=False)
    with history.left_out():
        assert os.environ["LOWTIDE_HISTORY"] == "off"
    assert "LOWTIDE_HISTORY" not in os.environ
    monkeypatch.setenv("LOWTIDE_HISTORY", "on")
    with pytest.raises(ValueError, match="as planned"), history.left_out():
        raise ValueError("as planned")
    assert os.environ["LOWTIDE_HISTORY"] == "on"

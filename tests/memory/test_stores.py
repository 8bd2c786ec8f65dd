"""Where what is learnt is kept."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from lowtide.memory import stores


def test_the_environment_names_the_folder(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOWTIDE_HOME", str(tmp_path / "here"))
    assert stores.folder() == tmp_path / "here"
    assert not (tmp_path / "here").exists(), "whoever writes makes it"
    monkeypatch.setenv("LOWTIDE_HOME", "~/there")
    assert stores.folder() == Path.home() / "there"
    monkeypatch.setenv("LOWTIDE_HOME", "relative")
    assert stores.folder().is_absolute()


@pytest.mark.parametrize("newer", [True, False])
def test_inside_comfyui_it_is_in_the_user_directory(monkeypatch, newer: bool) -> None:
    host = types.SimpleNamespace(get_user_directory=lambda: "/comfyui/user")
    if newer:
        host.get_system_user_directory = lambda name: f"/comfyui/user/__{name}"
    monkeypatch.setitem(sys.modules, "folder_paths", host)
    monkeypatch.delenv("LOWTIDE_HOME")
    assert stores.folder() == Path("/comfyui/user/__lowtide")
    monkeypatch.setenv("LOWTIDE_HOME", "/elsewhere")
    assert stores.folder() == Path("/elsewhere")


def test_else_it_is_the_platforms_folder_for_user_data(monkeypatch) -> None:
    given: list[object] = []

    def user_data_dir(name: str, appauthor: object = None) -> str:
        given.append((name, appauthor))
        return "/users/somebody/data"

    monkeypatch.setitem(
        sys.modules, "platformdirs", types.SimpleNamespace(user_data_dir=user_data_dir)
    )
    monkeypatch.delenv("LOWTIDE_HOME")
    assert stores.folder() == Path("/users/somebody/data") and given == [("lowtide", False)]


def test_the_package_that_names_it_takes_this_call(monkeypatch) -> None:
    pytest.importorskip("platformdirs")
    monkeypatch.delenv("LOWTIDE_HOME")
    assert stores.folder().name == "lowtide" and stores.folder().is_absolute()

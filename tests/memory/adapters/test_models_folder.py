"""From a name to a folder, and no way out of the roots."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lowtide.memory.adapters.models_folder import (
    ENVIRONMENT,
    INDEX,
    add_root,
    diffusers_folders,
    diffusers_roots,
    remove_root,
    resolve,
)
from lowtide.memory.errors import PipelineLoadError


def pipeline(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / INDEX).write_text("{}")
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    folder = tmp_path / "diffusers"
    folder.mkdir()
    add_root(folder)
    yield folder
    remove_root(folder)


def test_pipelines_are_found_at_any_depth_and_sorted(root: Path) -> None:
    for name in ("zebra", "author/model", "a/b/c/d"):
        pipeline(root / name)
    assert diffusers_folders() == ["a/b/c/d", "author/model", "zebra"]
    assert resolve("author/model") == root / "author" / "model"


def test_what_is_too_deep_hidden_or_inside_a_pipeline_is_not_listed(root: Path) -> None:
    pipeline(root / "a/b/c/d/e")
    pipeline(root / ".cache/model")
    pipeline(root / "model")
    (root / "model" / "unet").mkdir()
    (root / "model" / "unet" / INDEX).write_text("{}")
    assert diffusers_folders() == ["model"]


def test_a_root_is_no_pipeline_itself(root: Path) -> None:
    (root / INDEX).write_text("{}")
    assert diffusers_folders() == []


def test_roots_are_those_added_and_those_of_the_environment(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    pipeline(two / "model")
    monkeypatch.setenv(ENVIRONMENT, os.pathsep.join([str(one), "", str(two), str(one)]))
    assert diffusers_roots() == [root, one, two]
    assert diffusers_folders() == ["model"]
    assert resolve("model") == two / "model"


def test_the_first_root_with_that_folder_wins(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "two"))
    pipeline(tmp_path / "two" / "model")
    first = pipeline(root / "model")
    assert resolve("model") == first
    assert diffusers_folders() == ["model"]


def test_a_root_counts_once_and_goes(root: Path) -> None:
    add_root(root)
    assert diffusers_roots() == [root]
    remove_root(root)
    remove_root(root)
    assert diffusers_roots() == []
    with pytest.raises(PipelineLoadError, match="nowhere"):
        resolve("model")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../secret",
        "a/../../secret",
        "a\\..\\..\\secret",
        "/etc",
        "\\\\server\\share",
        "C:\\models",
        "C:models",
        "a\0b",
    ],
)
def test_a_name_that_leaves_the_roots_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    pipeline(tmp_path / "secret")
    with pytest.raises(PipelineLoadError, match="is no name of a folder under models/diffusers"):
        resolve(name)


def test_a_backslash_separates_too(root: Path) -> None:
    found = pipeline(root / "author" / "model")
    assert resolve("author\\model") == found


def test_a_name_that_is_nowhere_says_where_it_was_sought(root: Path) -> None:
    (root / "file").write_text("")
    for name in ("absent", "file"):
        with pytest.raises(PipelineLoadError, match=f"there is no folder '{name}'") as caught:
            resolve(name)
        assert str(root) in str(caught.value)


def test_a_folder_that_links_back_ends(root: Path) -> None:
    pipeline(root / "model")
    (root / "loop").symlink_to(root, target_is_directory=True)
    names = diffusers_folders()
    assert "model" in names and len(names) < 10

"""Which diffusers pipelines are on disk, and the only way from a name to a path.

Roots are ComfyUI's ``models/diffusers`` folders, those added with ``add_root`` and those of the
environment variable ``LOWTIDE_DIFFUSERS`` (several separated like ``PATH``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import PipelineLoadError
from .comfy.paths import folder_paths

ENVIRONMENT = "LOWTIDE_DIFFUSERS"
INDEX = "model_index.json"
_DEPTH = 4

_added: list[Path] = []


def add_root(path: str | os.PathLike[str]) -> None:
    """Look for pipelines in ``path`` too, from now on, in this process."""
    root = Path(path).absolute()
    if root not in _added:
        _added.append(root)


def remove_root(path: str | os.PathLike[str]) -> None:
    """Stop looking in a root given to ``add_root``."""
    root = Path(path).absolute()
    if root in _added:
        _added.remove(root)


def diffusers_roots() -> list[Path]:
    """Every folder that may hold pipelines, without repetition."""
    given = [Path(part) for part in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if part]
    found: dict[Path, None] = {}
    for root in [*_added, *given, *folder_paths("diffusers")]:
        found.setdefault(root.absolute(), None)
    return list(found)


def diffusers_folders() -> list[str]:
    """Names of the pipelines found, relative to their root and with ``/``, sorted."""
    names = {name for root in diffusers_roots() if root.is_dir() for name in _pipelines(root)}
    return sorted(names)


def resolve(name: str) -> Path:
    """The folder of the pipeline called ``name``.

    Raises:
        PipelineLoadError: the name leaves the roots, or no root has such a folder.
    """
    windows = PureWindowsPath(name)
    parts = windows.parts
    if not name or "\0" in name or windows.anchor or PurePosixPath(name).is_absolute():
        raise PipelineLoadError(_outside(name))
    if ".." in parts or windows.drive:
        raise PipelineLoadError(_outside(name))
    roots = diffusers_roots()
    for root in roots:
        folder = root.joinpath(*parts)
        if folder.is_dir():
            return folder
    places = ", ".join(str(root) for root in roots) or "nowhere (no folder is set up)"
    raise PipelineLoadError(
        f"there is no folder {name!r} with a diffusers pipeline; looked in {places}. Put the "
        f"pipeline's folder (the one with {INDEX}) there and refresh."
    )


def _outside(name: str) -> str:
    return (
        f"{name!r} is no name of a folder under models/diffusers; give a path relative to it, "
        f"without a drive, a leading slash or '..'"
    )


def _pipelines(root: Path) -> Iterator[str]:
    pending = [(root, 0)]
    while pending:
        folder, depth = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue  # a folder we may not read holds no pipeline for us
        if depth and any(entry.name == INDEX for entry in entries):
            yield folder.relative_to(root).as_posix()
        elif depth < _DEPTH:
            pending += [
                (Path(entry.path), depth + 1)
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir()
            ]

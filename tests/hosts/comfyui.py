"""Finds the ComfyUI installations that the host tests run in.

``$COMFYUI_PATH`` names one or several folders (``os.pathsep`` between them); unset, every
``~/comfy/ComfyUI*`` counts. ``$COMFYUI_PYTHON`` overrules the interpreter, else the ``.venv`` in
the folder is used.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Installation:
    """One ComfyUI checkout and the interpreter that has its requirements."""

    root: Path
    python: Path
    version: str

    def __str__(self) -> str:
        return self.version


def _candidates() -> list[Path]:
    named = os.environ.get("COMFYUI_PATH")
    if named is not None:
        return [Path(part).expanduser() for part in named.split(os.pathsep) if part]
    return sorted(Path("~/comfy").expanduser().glob("ComfyUI*"))


def _interpreter(root: Path) -> Path | None:
    named = os.environ.get("COMFYUI_PYTHON")
    choices = (
        [Path(named).expanduser()]
        if named
        else [root / ".venv" / "bin" / "python", root / ".venv" / "Scripts" / "python.exe"]
    )
    return next((choice for choice in choices if choice.is_file()), None)


def _version(root: Path) -> str | None:
    source = root / "comfyui_version.py"
    if not source.is_file():
        return None
    # Read as text: importing it would need the other interpreter's path.
    found = re.search(r'__version__\s*=\s*"([^"]+)"', source.read_text(encoding="utf-8"))
    return found.group(1) if found else None


def survey() -> tuple[list[Installation], list[str]]:
    """Returns the usable installations, oldest first, and why each other candidate is not."""
    usable: list[Installation] = []
    refused: list[str] = []
    for root in _candidates():
        version, python = _version(root), _interpreter(root)
        if version is None:
            refused.append(f"{root}: no comfyui_version.py")
        elif python is None:
            refused.append(f"{root}: no interpreter (.venv inside it, or $COMFYUI_PYTHON)")
        else:
            usable.append(Installation(root.resolve(), python, version))
    if not usable and not refused:
        refused.append("no folder matches ~/comfy/ComfyUI*, and $COMFYUI_PATH names none")
    usable.sort(key=lambda it: [int(part) for part in re.findall(r"\d+", it.version)])
    return usable, refused

"""Pipeline folders to spoil: one good folder, copied by links where nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lowtide.memory.adapters.synthetic import write_pipeline


def good(folder: Path, name: str = "tiny-sd15", dtype: str = "float32") -> Path:
    """A pipeline folder as diffusers writes it."""
    return write_pipeline(folder / name, name, dtype=dtype)


def copy(folder: Path, target: Path) -> Path:
    """A copy to change; returns it."""
    return Path(shutil.copytree(folder, target / "spoiled"))


def change_index(folder: Path, **entries: Any) -> Path:
    """Set entries of model_index.json; returns the folder."""
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index.update(entries)
    path.write_text(json.dumps(index), encoding="utf-8")
    return folder

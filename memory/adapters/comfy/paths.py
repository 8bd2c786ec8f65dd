"""Where ComfyUI keeps its models."""

from __future__ import annotations

import sys
from pathlib import Path


def folder_paths(kind: str) -> list[Path]:
    """ComfyUI's folders for one kind of model, best first; empty outside ComfyUI."""
    if "folder_paths" not in sys.modules:
        return []
    import folder_paths as host

    if kind not in host.folder_names_and_paths:
        return []
    return [Path(path) for path in host.get_folder_paths(kind)]

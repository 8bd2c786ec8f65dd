"""Where ComfyUI keeps its models and its users' files."""

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


def user_folder(name: str) -> Path | None:
    """A folder for a pack's own files in ComfyUI's user directory; ``None`` outside ComfyUI.

    Of the kind newer versions keep from being read through their server; older ones treat every
    folder whose name begins so like any other.
    """
    if "folder_paths" not in sys.modules:
        return None
    import folder_paths as host

    if hasattr(host, "get_system_user_directory"):
        return Path(host.get_system_user_directory(name))
    return Path(host.get_user_directory()) / f"__{name}"

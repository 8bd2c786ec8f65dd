"""Files a command is to write, looked at before it measures anything."""

from __future__ import annotations

from pathlib import Path

from ..memory.errors import ConfigError


def make_writable(option: str, path: Path) -> None:
    """Make the file's folder, before anything is measured that could then not be kept.

    Raises:
        ConfigError: no file can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("ab"):
            pass
        if new:  # a run that breaks off leaves no empty file
            path.unlink()
    except OSError as error:
        raise ConfigError(
            f"{option} {path} cannot be written ({error.strerror or error}); give a file in a "
            f"folder you may write to"
        ) from None

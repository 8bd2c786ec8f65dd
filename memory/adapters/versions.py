"""Versions of the libraries a trace depends on."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def version(library: str) -> str | None:
    """The installed version; ``None`` where there is none."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None

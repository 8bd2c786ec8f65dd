"""Byte counts and how people read them.

Every size inside Lowtide is an ``int`` of bytes. "GB" in a widget, a threshold or a report is
1024**3 bytes, as in ComfyUI's own flags and logs.
"""

from __future__ import annotations

import math

from .errors import ConfigError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_MOST_GB = float(1 << 30)
"""More is no amount of memory, and beyond 2**63 bytes none to SQLite or torch either."""
_SUFFIXES = {"": 1, "K": KIB, "M": MIB, "G": GIB}


def format_bytes(count: int | None) -> str:
    """Render bytes for a person: ``"1.50 GB"``, ``"25.8 MB"``, ``"unknown"`` for ``None``."""
    if count is None:
        return "unknown"
    size = abs(count)
    if size >= GIB:
        return f"{count / GIB:.2f} GB"
    if size >= MIB:
        return f"{count / MIB:.1f} MB"
    if size >= KIB:
        return f"{count / KIB:.1f} KB"
    return f"{count} B"


def gb_to_bytes(gigabytes: float) -> int:
    """Bytes in ``gigabytes`` * 1024**3, rounded down.

    Raises:
        ConfigError: the number is negative, absurd, infinite or not a number.
    """
    if not 0 <= gigabytes <= _MOST_GB:
        raise ConfigError(
            f"{gigabytes!r} GB is not a size; give a finite number of GB, 0 to {_MOST_GB:.0f}"
        )
    return int(gigabytes * GIB)


def bytes_to_gb(count: int) -> float:
    """``count`` bytes in GB of 1024**3 bytes."""
    return count / GIB


def parse_bytes(text: str) -> int:
    """Bytes of ``"512M"``, ``"1.5G"``, ``"64KiB"`` or ``"4096"`` (binary multiples).

    Raises:
        ConfigError: the text is no size.
    """
    cleaned = text.strip().upper()
    for ending in ("IB", "B"):
        if cleaned.endswith(ending):
            cleaned = cleaned[: -len(ending)]
            break
    suffix = cleaned[-1:] if cleaned[-1:] in ("K", "M", "G") else ""
    number = cleaned[: len(cleaned) - len(suffix)]
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ConfigError(f"{text!r} is not a size; write for example 512M or 1.5G")
    return int(value * _SUFFIXES[suffix])


def givable(count: int) -> int:
    """``count`` rounded up to what :func:`format_bytes` shows, so that the named budget works."""
    step = (1 << 30) // 100 if count >= 1 << 30 else (1 << 20) // 10
    return -(-count // step) * step + step

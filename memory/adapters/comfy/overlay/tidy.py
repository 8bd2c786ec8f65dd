"""Names and texts from files, graphs and other packs, made fit to be sent: bounded, and data only.

They come from strangers. What could act on a terminal, a log or the direction of the text around
it is left out; letters of any script and emoji stay.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

NAME = 120
"""Most characters of a name."""
LINE = 500
"""Most characters of a text of one line."""
TEXT = 8000
"""Most characters of a text of several lines."""

_LOOKED_AT = 10_000
_MORE = "…"
# Overrides and isolates turn the rest of a line around; marks such as RLM only order neighbours.
_DIRECTIONS = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_BREAKS = {"\u2028", "\u2029"}
_PATH = re.compile(r"(?<![^\s\"'(\[=,])(?:[A-Za-z]:|~)?(?:[\\/][^\\/\s:\"')\],]+){2,}[\\/]?")


def name(value: Any) -> str:
    """A name on one line; of a path, its last part."""
    text = str(value)[:_LOOKED_AT].replace("\\", "/").rstrip("/")
    return _bounded(_clean(text.rpartition("/")[2], "").strip(), NAME) or "unnamed"


def line(value: Any) -> str:
    """A text on one line."""
    return _bounded(_clean(_without_paths(str(value)[:_LOOKED_AT]), "").strip(), LINE)


def text(value: Any) -> str:
    """A text of several lines."""
    return _bounded(_clean(_without_paths(str(value)[: 4 * TEXT]), "\n"), TEXT)


def _without_paths(value: str) -> str:
    """Of each path its last part: where things lie on this machine is nobody's business."""
    return _PATH.sub(lambda found: re.split(r"[\\/]", found[0].rstrip("\\/"))[-1], value)


def _clean(value: str, kept: str) -> str:
    return "".join(
        one if one in kept or not _acts(one) else " " if one.isspace() else "" for one in value
    )


def _acts(one: str) -> bool:
    return one in _DIRECTIONS or one in _BREAKS or unicodedata.category(one) in ("Cc", "Cs")


def _bounded(value: str, most: int) -> str:
    return value if len(value) <= most else value[: most - 1] + _MORE

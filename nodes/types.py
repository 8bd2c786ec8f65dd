"""The socket types of Lowtide's nodes."""

from __future__ import annotations


class Any(str):
    """A socket type equal to every other one, so that a node can pass anything through.

    ComfyUI compares types with ``!=`` only; a plain ``"*"`` is refused by older versions.
    """

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


ANY = Any("*")
CONFIG = "LOWTIDE_CONFIG"
FIGURES = "LOWTIDE_FIGURES"
PIPELINE = "DIFFUSERS_PIPELINE"

CATEGORY = "Lowtide"

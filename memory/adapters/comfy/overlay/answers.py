"""What the fit check's sources answer."""

from __future__ import annotations

from dataclasses import dataclass

Found = tuple[int, str]
"""Bytes on the device at the node's peak, weights included, and where the figure is from."""


@dataclass(frozen=True)
class Unknown:
    """No figure, and ``why``, for the case that no other source has one.

    ``pending``: there will be one soon; ask again.
    """

    why: str = ""
    pending: bool = False

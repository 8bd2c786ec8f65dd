"""What ControlNets keep of a sampling that did not come to its end.

ComfyUI has a ControlNet drop its hint, a tensor on the device, only once a sampling has succeeded.
After an error or an interrupt the conditioning, which the results' cache keeps, would hold it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger("lowtide")

_DEPTH = 5
"""How far containers are searched: a node's inputs are lists, of conditionings in lists."""


def drop_hints(inputs: dict[str, Any]) -> None:
    """Have every ControlNet in a failed node's inputs drop what it made for the run.

    Each does the same at the end of a sampling, and makes it anew for the next. Never raises.
    """
    for control in _controls_in(inputs, _DEPTH):
        try:
            control.cleanup()
        except Exception:
            logger.exception("a %s could not drop its hint", type(control).__name__)


def _controls_in(value: Any, depth: int) -> Iterator[Any]:
    if hasattr(value, "cleanup") and hasattr(value, "get_models"):
        yield value
    elif depth and isinstance(value, dict):
        for held in value.values():
            yield from _controls_in(held, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for held in value:
            yield from _controls_in(held, depth - 1)
    elif depth and isinstance(getattr(value, "original_conds", None), dict):
        yield from _controls_in(value.original_conds, depth)

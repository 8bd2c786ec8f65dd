"""Text encoders that wait on the device for the next node of the prompt that encodes with them.

A budget has components leave when their node is done, for the next one to have all of it. A graph
has two texts as a rule, and an encoder that left between them would come twice.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

from .models import leave_device

logger = logging.getLogger("lowtide")

_waiting: weakref.WeakSet[Any] = weakref.WeakSet()


def leave_or_wait(patcher: Any) -> None:
    """Off the device, unless all of it is there and a node of the prompt has yet to use it."""
    if _needed_again(patcher):
        _waiting.add(patcher)
    else:
        _waiting.discard(patcher)
        leave_device(patcher)


def end() -> None:
    """The prompt is over: what still waits leaves."""
    for patcher in list(_waiting):
        leave_device(patcher)
    _waiting.clear()


def _needed_again(patcher: Any) -> bool:
    from .executor import running

    if patcher.model.model_lowvram or not patcher.loaded_size():
        return False  # streamed: it comes anew in any case
    try:
        prompt = running()
        later = None if prompt is None else prompt.needed(begun=False)
    except Exception:
        logger.exception("Lowtide does not know what the later nodes need; the encoder leaves")
        return False
    return any(patcher.is_clone(other) for other in later or ())

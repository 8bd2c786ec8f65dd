"""Out-of-memory errors the core keeps to itself, and what they leave behind.

Two of them change the result or hide the cause. A LoRA's delta that cannot be computed is left out
of the weight, and only the log says so. A VAE whose load fails is run in tiles all the same, with
its weights on the host, and what comes out is an error about devices.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from ... import backend
from ...rescue import is_out_of_memory
from .patchers import is_dynamic, restore_cast_flags

_DEVICES = ("same device", "should be the same")
_DEPTH = 5
"""How far conditioning nests its control nets: inputs, list, pair, dict, control net."""


class LostPatches(logging.Filter):
    """Reads the core's log for weights whose patches were left out for want of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Always lets the record through."""
        if record.levelno == logging.ERROR and isinstance(record.msg, str):
            text = record.msg
            if text.startswith("ERROR ") and "out of memory" in text.lower():
                self.found.append(text.removeprefix("ERROR ")[:120])
        return True

    def take(self) -> list[str]:
        """What was found since the last call."""
        found, self.found = self.found, []
        return found


def failures() -> int:
    """How often ComfyUI's device has run out of memory so far; 0 where it is not counted."""
    import comfy.model_management as mm

    return backend.failed_allocations(backend.device_of(mm.get_torch_device()))


def for_want_of_memory(error: BaseException, before: int) -> bool:
    """Whether a node failed for want of memory; ``before`` is ``failures()`` as it began."""
    if is_out_of_memory(error):
        return True
    mixed = isinstance(error, RuntimeError) and any(said in str(error) for said in _DEVICES)
    return mixed and failures() > before


def forget_failed_loads(values: Iterable[Any]) -> None:
    """Undo the cast flags of a load that failed, on the models among a node's inputs.

    The core leaves them; its next partial load would take such layers for streamed already, and
    leave out their LoRAs.
    """
    for patcher in _patchers(list(values), _DEPTH):
        model = patcher.model
        if is_dynamic(patcher) or model.model_lowvram or model.model_loaded_weight_memory:
            continue
        restore_cast_flags(model)


def _patchers(value: Any, depth: int) -> Iterator[Any]:
    if hasattr(value, "is_clone") and hasattr(value, "model_size"):
        yield value
        return
    for name in ("patcher", "model_patcher"):
        found = getattr(value, name, None)
        if found is not None:
            yield from _patchers(found, 0)
    if hasattr(value, "get_models") and hasattr(value, "get_control"):
        yield from value.get_models()
    if depth and isinstance(value, (list, tuple, dict)):
        for held in value.values() if isinstance(value, dict) else value:
            yield from _patchers(held, depth - 1)

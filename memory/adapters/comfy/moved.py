"""Bytes of weights that go to the device and come back from it, while somebody counts.

Loads and unloads are read off ComfyUI's own accounting, before and after each; weights that are
streamed for one call are counted as they are cast. What nodes move by themselves (latents, images,
models ComfyUI does not manage) and DynamicVRAM's pages are not counted.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_UNLOADS = ("model_load", "model_unload", "model_use_more_vram")


@dataclass(frozen=True)
class Moved:
    """Bytes to the device and from it."""

    to_device: int = 0
    from_device: int = 0

    def __sub__(self, other: Moved) -> Moved:
        return Moved(self.to_device - other.to_device, self.from_device - other.from_device)

    def __add__(self, other: Moved) -> Moved:
        return Moved(self.to_device + other.to_device, self.from_device + other.from_device)


_count = [0, 0]
_resident: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_undo: list[Callable[[], None]] = []


def install() -> None:
    """Begin to count; idempotent."""
    if _undo:
        return
    import comfy.model_management as mm
    import comfy.ops

    for name in _UNLOADS:
        if hasattr(mm.LoadedModel, name):
            _replace(mm.LoadedModel, name, _around)
    _replace(comfy.ops, "cast_bias_weight", _casting)
    update()


def uninstall() -> None:
    """Put ComfyUI's functions back."""
    while _undo:
        _undo.pop()()
    _resident.clear()


def read() -> Moved:
    """Bytes moved since the process began to count."""
    update()
    return Moved(*_count)


def uncopied(size: int) -> None:
    """Of what left the device, ``size`` bytes were on the host already."""
    if _undo:
        update()
        _count[1] -= size


def update() -> None:
    """Take in what changed without a load or an unload, such as a cap that moved."""
    import comfy.model_management as mm

    for entry in list(mm.current_loaded_models):
        _look(entry.model)


def _look(patcher: Any) -> None:
    if patcher is None or patcher.load_device == patcher.offload_device:
        return
    now = int(getattr(patcher.model, "model_loaded_weight_memory", 0))
    before = _resident.get(patcher.model, 0)
    _resident[patcher.model] = now
    _count[0] += max(0, now - before)
    _count[1] += max(0, before - now)


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    ours = make(original)
    setattr(owner, name, ours)

    def undo() -> None:
        if getattr(owner, name) is ours:  # another pack's around ours stays, and ours does little
            setattr(owner, name, original)

    _undo.append(undo)


def _around(original: Any) -> Any:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        patcher = self.model
        _look(patcher)
        try:
            return original(self, *args, **kwargs)
        finally:
            _look(patcher)

    return method


def _casting(original: Any) -> Any:
    @functools.wraps(original)
    def cast_bias_weight(
        s: Any, input: Any = None, dtype: Any = None, device: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if not torch.compiler.is_compiling() and not hasattr(s, "_v"):
            target = device if device is not None else getattr(input, "device", None)
            for tensor in (s.weight, s.bias):
                if tensor is not None and target is not None and tensor.device != target:
                    _count[0] += tensor.nbytes
        return original(s, input, dtype, device, *args, **kwargs)

    return cast_bias_weight

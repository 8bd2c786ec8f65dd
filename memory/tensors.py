"""The tensors an object holds on accelerators: found, counted, replaced.

Counts are of storages, each once, so that tied weights and views are not counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

_DEPTH = 3


def on_accelerator(tensor: torch.Tensor, device: torch.device | None) -> bool:
    """Whether the tensor occupies ``device``; ``None`` = any device but the host's."""
    where = tensor.device
    if where.type in ("cpu", "meta"):
        return False
    return device is None or (where.type == device.type and (where.index or 0) == device.index)


def any_on_accelerator(value: Any) -> bool:
    """Whether a value, or a container of values, has a tensor on an accelerator."""
    return any(on_accelerator(tensor, None) for tensor in _inside(value, _DEPTH))


def plain_tensors(owner: Any) -> Iterator[torch.Tensor]:
    """Tensors in ``owner``'s attributes, in lists, tuples and dicts too; no parameter, no buffer.

    A module's submodules and a pipeline's components are not entered.
    """
    for name, value in list(vars(owner).items()):
        if name not in ("_parameters", "_buffers", "_modules"):
            yield from _inside(value, _DEPTH)


def held_tensors(owner: Any) -> Iterator[torch.Tensor]:
    """All tensors of an object; of a module with its submodules, gradients included."""
    if not isinstance(owner, torch.nn.Module):
        yield from plain_tensors(owner)
        return
    for module in owner.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                yield parameter
                if parameter.grad is not None:
                    yield parameter.grad
        yield from (buffer for buffer in module._buffers.values() if buffer is not None)
        yield from plain_tensors(module)


def device_bytes(owner: Any, device: torch.device | None = None) -> int:
    """Bytes of the distinct storages ``owner`` holds on ``device`` (``None`` = any accelerator)."""
    storages: dict[tuple[torch.device, int], int] = {}
    for tensor in held_tensors(owner):
        if on_accelerator(tensor, device):
            storage = tensor.untyped_storage()
            storages[storage.device, storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def first_device(owner: Any) -> torch.device | None:
    """The accelerator ``owner`` holds a tensor on; ``None`` if it holds none there."""
    return next((t.device for t in held_tensors(owner) if on_accelerator(t, None)), None)


def replace_plain(owner: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Put ``change(tensor)`` in the place of each tensor :func:`plain_tensors` finds."""
    for name, value in list(vars(owner).items()):
        if name not in ("_parameters", "_buffers", "_modules"):
            changed = _changed(value, change, _DEPTH)
            if changed is not value:
                vars(owner)[name] = changed


def _inside(value: Any, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and type(value) in (list, tuple):
        for item in value:
            yield from _inside(item, depth - 1)
    elif depth and type(value) is dict:
        for item in list(value.values()):
            yield from _inside(item, depth - 1)


def _changed(value: Any, change: Callable[[torch.Tensor], torch.Tensor], depth: int) -> Any:
    """``value`` with its tensors changed: lists and dicts in place, others by a new object."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if not depth:
        return value
    if type(value) is tuple:
        items = tuple(_changed(item, change, depth - 1) for item in value)
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    if type(value) in (list, dict):
        keys = range(len(value)) if type(value) is list else list(value)
        for key in keys:
            changed = _changed(value[key], change, depth - 1)
            if changed is not value[key]:
                value[key] = changed
    return value

"""Host copies of weights that are on the device for a short while: to leave, they copy nothing.

ComfyUI moves a weight; what it takes off the device it copies back. A model that leaves as soon as
its nodes are done would pay for that in every prompt. So what such a model had on the host stays
there while it is on the device, and is put back in its place when it leaves. It costs host memory
of the weights' size for that while, and is given up where the host is short of it.

Weights that somebody changed meanwhile are copied back as ever: LoRAs are in ComfyUI's own backup,
weights that were replaced have another address, and one element of each weight is compared, for
packs that train or scale a whole model in place.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...host import host_snapshot

logger = logging.getLogger("lowtide")

FLOOR = 0.15
"""Where less than this part of the host's memory is free, no copy is kept."""


@dataclass(frozen=True)
class _Copy:
    parameter: Callable[[], Any]
    """A weak reference."""
    host: torch.Tensor
    address: int
    """Of the weight on the device."""

    def stands_for(self, parameter: Any) -> bool:
        """Whether the parameter is on the device, and its storage the one of this copy."""
        return (
            parameter is not None
            and parameter.device != self.host.device
            and parameter.data_ptr() == self.address
            and parameter.dtype == self.host.dtype
            and parameter.shape == self.host.shape
        )


_kept: weakref.WeakKeyDictionary[Any, list[_Copy]] = weakref.WeakKeyDictionary()
_undo: list[Callable[[], None]] = []


def install(wanted: Callable[[Any], bool]) -> None:
    """Keep copies from the next load on; idempotent.

    Args:
        wanted: says of a patcher that is loaded whether it leaves soon. What it raises is logged.
    """
    if _undo:
        return
    from comfy.model_patcher import ModelPatcher

    original = ModelPatcher.load

    @functools.wraps(original)
    def load(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = _guarded(lambda: _on_host(self) if wanted(self) else None)
        found = original(self, *args, **kwargs)
        _guarded(lambda: _keep(self, before or []))
        return found

    ModelPatcher.load = load

    def undo() -> None:
        if ModelPatcher.load is load:  # another pack's around ours stays, and ours does little
            ModelPatcher.load = original

    _undo.append(undo)


def uninstall() -> None:
    """Put ComfyUI's method back and drop every copy; what is loaded leaves by copying."""
    while _undo:
        _undo.pop()()
    _kept.clear()


def kept_bytes() -> int:
    """Bytes of host memory in copies whose weights are on the device now."""
    return sum(
        copy.host.nbytes
        for copies in list(_kept.values())
        for copy in copies
        if copy.stands_for(copy.parameter())
    )


@contextmanager
def put_back(patcher: Any) -> Iterator[int]:
    """Give the model its host copies, for a block that takes it off the device.

    Yields the bytes that need not be copied. If the model is still loaded after the block, they
    go to the device again.
    """
    swapped = _guarded(lambda: _swap(patcher)) or []
    try:
        yield sum(parameter.nbytes for parameter, _ in swapped)
    finally:
        if swapped and patcher.loaded_size() > 0:
            for parameter, device in swapped:
                parameter.data = parameter.data.to(device)


def _on_host(patcher: Any) -> list[tuple[Any, torch.Tensor]]:
    """Parameters the load may move, with their data as it is."""
    if patcher.load_device == patcher.offload_device:
        return []
    host = host_snapshot()
    if host.available < FLOOR * host.total:
        _kept.clear()
        return []
    return [
        (parameter, parameter.data)
        for parameter in patcher.model.parameters()
        if parameter.device == patcher.offload_device and type(parameter.data) is torch.Tensor
    ]


def _keep(patcher: Any, before: list[tuple[Any, torch.Tensor]]) -> None:
    """Remember what is on the device now, and forget what is not, or is not the same, any more."""
    held = _kept.pop(patcher.model, [])
    copies = [copy for copy in held if copy.stands_for(copy.parameter())]
    copies += [
        _Copy(weakref.ref(parameter), data, parameter.data_ptr())
        for parameter, data in before
        if parameter.device != data.device
    ]
    if copies:
        _kept[patcher.model] = copies


def _swap(patcher: Any) -> list[tuple[Any, torch.device]]:
    """Put the copies in place of the device's weights; the parameters, with their old devices."""
    swapped: list[tuple[Any, torch.device]] = []
    found = [(copy, copy.parameter()) for copy in _kept.pop(patcher.model, [])]
    pairs = [(parameter, copy.host) for copy, parameter in found if copy.stands_for(parameter)]
    if not pairs or not _alike(pairs):
        return swapped
    for parameter, host in pairs:
        swapped.append((parameter, parameter.device))
        parameter.data = host
    return swapped


def _alike(pairs: list[tuple[Any, torch.Tensor]]) -> bool:
    """Whether the middle element of every weight is what it was on the host, bit by bit."""
    by_type: dict[torch.dtype, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for parameter, host in pairs:
        if host.numel():
            found = by_type.setdefault(host.dtype, [])
            found.append((_middle(parameter.data), _middle(host)))
    return all(
        torch.equal(
            torch.stack([here for here, _ in some]).cpu().view(torch.uint8),
            torch.stack([there for _, there in some]).view(torch.uint8),
        )
        for some in by_type.values()
    )


def _middle(tensor: torch.Tensor) -> torch.Tensor:
    """One element, without a copy, whatever the strides."""
    place = [size // 2 for size in tensor.shape]
    offset = sum(at * step for at, step in zip(place, tensor.stride(), strict=True))
    return tensor.as_strided((1,), (1,), tensor.storage_offset() + offset)


def _guarded(step: Callable[[], Any]) -> Any:
    """Run it; a failure is logged, and ComfyUI goes on as without it."""
    try:
        return step()
    except Exception:
        logger.exception("Lowtide could not keep host copies of a model's weights")
        return None

"""Host copies of weights that are on the device for a short while: to leave, they copy nothing.

ComfyUI moves a weight; what it takes off the device it copies back. A model that leaves as soon as
its nodes are done would pay for that in every prompt. So what such a model had on the host stays
there while it is on the device, and is put back in its place when it leaves. It costs host memory
of the weights' size for that while, and is given up where the host is short of it.

Weights that somebody changed meanwhile are copied back as ever: LoRAs are in ComfyUI's own backup,
weights that were replaced have another storage, and one element of each weight is compared, for
packs that train or scale a whole model in place. Hazard: a change in place of a few elements, which
ComfyUI has no backup of, is lost when the model leaves.
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
from torch.multiprocessing.reductions import StorageWeakRef

from ...host import host_snapshot
from . import moved

logger = logging.getLogger("lowtide")

FLOOR = 0.15
"""Where less than this part of the host's memory is free, no copy is kept."""


@dataclass(frozen=True)
class _Copy:
    parameter: Callable[[], Any]
    """A weak reference."""
    host: torch.Tensor
    storage: StorageWeakRef
    """Of the weight on the device. An address would not do: the next load may get the same."""

    def stands_for(self, parameter: Any) -> bool:
        """Whether the parameter is on the device, and its storage the one of this copy."""
        return (
            parameter is not None
            and parameter.device != self.host.device
            and not self.storage.expired()
            and StorageWeakRef(parameter.untyped_storage()) == self.storage
            and parameter.dtype == self.host.dtype
            and parameter.shape == self.host.shape
        )


_kept: weakref.WeakKeyDictionary[Any, list[_Copy]] = weakref.WeakKeyDictionary()
_undo: list[Callable[[], None]] = []


def install(wanted: Callable[[Any], bool]) -> None:
    """Keep copies from the next load on; idempotent.

    Whatever takes a model off the device then puts them back: a node that ends, ComfyUI that needs
    the room, a cleanup.

    Args:
        wanted: says of a patcher that is loaded whether it leaves soon. What it raises is logged.
    """
    if _undo:
        return
    _replace("load", functools.partial(_loading, wanted))
    _replace("unpatch_model", _unpatching)
    _replace("partially_unload", _pruning)
    _replace("detach", _pruning)


def uninstall() -> None:
    """Put ComfyUI's methods back and drop every copy; what is loaded leaves by copying."""
    while _undo:
        _undo.pop()()
    _kept.clear()


def kept_bytes() -> int:
    """Bytes of host memory in copies whose weights are on the device now."""
    held = {
        copy.host.untyped_storage().data_ptr(): copy.host.untyped_storage().nbytes()
        for model in _kept.keyrefs()
        for copy in _kept.get(model(), ())
        if copy.stands_for(copy.parameter())
    }
    return sum(held.values())


def _replace(name: str, around: Callable[..., Any]) -> None:
    """Have ``around(original, patcher, ...)`` run in the place of a method of every patcher."""
    from comfy.model_patcher import ModelPatcher

    original = getattr(ModelPatcher, name)
    live = [True]

    @functools.wraps(original)
    def ours(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not live:  # another pack's around ours has kept it in place
            return original(self, *args, **kwargs)
        return around(original, self, *args, **kwargs)

    setattr(ModelPatcher, name, ours)

    def undo() -> None:
        live.clear()
        if getattr(ModelPatcher, name) is ours:
            setattr(ModelPatcher, name, original)

    _undo.append(undo)


def _loading(
    wanted: Callable[[Any], bool], original: Any, patcher: Any, *args: Any, **kwargs: Any
) -> Any:
    before = _guarded(lambda: _on_host(patcher) if wanted(patcher) else None)
    found = original(patcher, *args, **kwargs)
    _guarded(lambda: _keep(patcher, before or []))
    return found


def _unpatching(
    original: Any,
    patcher: Any,
    device_to: Any = None,
    unpatch_weights: bool = True,
    *args: Any,
    **kwargs: Any,
) -> Any:
    held = _guarded(lambda: _kept.get(patcher.model))
    if not unpatch_weights or device_to is None or not held:
        return original(patcher, device_to, unpatch_weights, *args, **kwargs)
    patcher.eject_model()  # as the original begins: what was injected may change weights back
    with _put_back(patcher, device_to) as uncopied:
        found = original(patcher, device_to, unpatch_weights, *args, **kwargs)
    moved.uncopied(patcher, uncopied)
    return found


def _pruning(original: Any, patcher: Any, *args: Any, **kwargs: Any) -> Any:
    found = original(patcher, *args, **kwargs)
    _guarded(lambda: _keep(patcher, []))
    return found


@contextmanager
def _put_back(patcher: Any, device: Any) -> Iterator[int]:
    """Give the model its host copies, for a block that takes it off the device.

    Yields the bytes that need not be copied. If the block fails, they go to the device again.
    """
    swapped: list[tuple[Any, torch.device]] = []
    _guarded(lambda: _swap(patcher, torch.device(device), swapped))
    try:
        yield sum(parameter.nbytes for parameter, _ in swapped)
    except BaseException:
        _guarded(lambda: _to_the_device(patcher, swapped))
        raise


def _to_the_device(patcher: Any, swapped: list[tuple[Any, torch.device]]) -> None:
    if patcher.loaded_size() > 0:
        for parameter, there in swapped:
            parameter.data = parameter.data.to(there)


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
        if parameter.device == patcher.offload_device
        and type(parameter) is torch.nn.Parameter
        and type(parameter.data) is torch.Tensor
    ]


def _keep(patcher: Any, before: list[tuple[Any, torch.Tensor]]) -> None:
    """Remember what is on the device now, and forget what is not, or is not the same, any more."""
    held = _kept.pop(patcher.model, [])
    copies = [copy for copy in held if copy.stands_for(copy.parameter())]
    copies += [
        _Copy(weakref.ref(parameter), data, StorageWeakRef(parameter.untyped_storage()))
        for parameter, data in before
        if parameter.device != data.device
    ]
    if copies:
        _kept[patcher.model] = copies


def _swap(patcher: Any, device: torch.device, swapped: list[tuple[Any, torch.device]]) -> None:
    """Put the copies in place of the device's weights; add the parameters, and where they were."""
    found = [(copy, copy.parameter()) for copy in _kept.pop(patcher.model, [])]
    pairs = [
        (parameter, copy.host)
        for copy, parameter in found
        if copy.stands_for(parameter) and copy.host.device == device
    ]
    if not pairs or not _alike(pairs):
        return
    for parameter, host in pairs:
        there = parameter.device
        parameter.data = host
        swapped.append((parameter, there))


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

"""Listens to torch's dispatcher and writes down births and deaths of storages, and kernels."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..later import go_on
from ..planner.trace import (
    ALLOCATED,
    COMPUTED,
    ENTERED,
    FREED,
    LEFT,
    Operation,
    Weight,
    coded,
)
from .attention import flops_of_attention
from .workspace import workspace_of

_HOST = "cpu"
_aten = torch.ops.aten


class Recorder(TorchDispatchMode):
    """Records while it is entered. Not reusable, and not thread-safe.

    Storages are known by their identity while they live; a weak reference tells when they die.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.events: list[int] = []
        self.sizes: list[int] = []
        self.operations: list[Operation] = []
        self.weights: list[Weight] = []
        self.modules: list[tuple[str, str, int]] = []
        self._weight_of: dict[int, int] = {}
        self._living: dict[int, tuple[int, Any]] = {}
        self._held: list[Any] = []
        self._within = [0]
        self._handles: list[Any] = []
        self._enroll(module)

    def _enroll(self, root: torch.nn.Module) -> None:
        place: dict[str, int] = {}
        for path, part in root.named_modules():
            place[path] = len(self.modules)
            parent = place.get(path.rpartition(".")[0], 0)
            self.modules.append((path, _kind(part), parent))
            self._weigh(path, part, place[path])
            self._handles += [
                part.register_forward_pre_hook(self._entering(place[path])),
                part.register_forward_hook(self._leaving(place[path]), always_call=True),
            ]

    def _weigh(self, path: str, part: torch.nn.Module, owner: int) -> None:
        for tensors, parameter in ((part._parameters, True), (part._buffers, False)):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                storage = tensor.untyped_storage()
                if storage._cdata in self._weight_of:
                    continue
                self._weight_of[storage._cdata] = len(self.weights)
                self._held.append(storage)
                full = f"{path}.{name}" if path else name
                kind = str(tensor.dtype).removeprefix("torch.")
                self.weights.append(
                    Weight(
                        full, owner, storage.nbytes(), tensor.numel(), kind, tensor.ndim, parameter
                    )
                )

    def _entering(self, module: int) -> Any:
        def enter(*_: Any) -> None:
            self._within.append(module)
            self.events.append(coded(ENTERED, module))

        return enter

    def _leaving(self, module: int) -> Any:
        def leave(*_: Any) -> None:
            self._within.pop()
            self.events.append(coded(LEFT, module))

        return leave

    def close(self) -> None:
        """Take the hooks off the module."""
        while self._handles:
            self._handles.pop().remove()

    def born(self, tensor: torch.Tensor) -> int | None:
        """The number of the tensor's storage, noted as born if it is new; ``None`` on the host."""
        if tensor.device.type == _HOST:
            return None
        storage = tensor.untyped_storage()
        identity = storage._cdata
        known = self._living.get(identity)
        if known is not None:
            return known[0]
        if identity in self._weight_of:
            return None
        number = len(self.sizes)
        self.sizes.append(storage.nbytes())
        me = weakref.ref(self)

        def gone(_: Any) -> None:
            recorder = me()
            if recorder is not None:
                recorder._died(identity)

        self._living[identity] = number, weakref.ref(storage, gone)
        self.events.append(coded(ALLOCATED, number))
        return number

    def _died(self, identity: int) -> None:
        known = self._living.pop(identity, None)
        if known is not None:
            self.events.append(coded(FREED, known[0]))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        go_on()
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace == "prim":
            return out  # a fake tensor asks for its device this way, and nothing happens
        packet = func._overloadpacket
        read: list[int] = []
        touched = 0
        for tensor in tensors_in((args, kwargs)):
            weight = self._weight_of.get(tensor.untyped_storage()._cdata)
            if weight is not None:
                read.append(weight)
            if tensor.device.type != _HOST:
                touched += tensor.numel() * tensor.element_size()
        before = len(self.sizes)
        on_device = False
        for tensor in tensors_in(out):
            on_device |= self.born(tensor) is not None
            touched += tensor.numel() * tensor.element_size()
        attends = func.namespace == "lowtide_trace"
        arriving, leaving = _copied(packet, args, out)
        counts = on_device or attends or leaving
        if (func.is_view and before == len(self.sizes)) or not counts:
            return out
        self.operations.append(
            Operation(
                str(packet).removeprefix("aten.").removeprefix("lowtide_trace."),
                _flops(packet, args, kwargs, out, attends),
                touched,
                workspace_of(packet, args, out),
                self._within[-1],
                tuple(read),
                arriving,
                leaving,
                any(tensor.dtype is torch.float32 for tensor in tensors_in(args)),
            )
        )
        self.events.append(coded(COMPUTED, len(self.operations) - 1))
        return out


def _kind(part: torch.nn.Module) -> str:
    """What a placement has to know of a module's class; hosts derive theirs from torch's."""
    if isinstance(part, torch.nn.Linear):
        return "Linear"
    if isinstance(part, torch.nn.modules.conv._ConvNd):
        return "Conv"
    for kind in (torch.nn.Embedding, torch.nn.ModuleList, torch.nn.Sequential):
        if isinstance(part, kind):
            return kind.__name__
    return type(part).__name__


def _copied(packet: Any, args: Any, out: Any) -> tuple[int, int]:
    """Bytes that came from the host, and that went there."""
    if packet is _aten._to_copy:
        target, source = out, args[0]
    elif packet is _aten.copy_:
        target, source = args[0], args[1]
    else:
        return 0, 0
    there, here = (tensor.device.type == _HOST for tensor in (source, target))
    if there == here:
        return 0, 0
    size = source.numel() * source.element_size()
    return (size, 0) if there else (0, size)


def _flops(packet: Any, args: Any, kwargs: dict[str, Any], out: Any, attends: bool) -> int:
    if attends:
        return flops_of_attention(*args)
    count = flop_registry.get(packet)
    return 0 if count is None else int(count(*args, **kwargs, out_val=out))


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Tensors of nested tuples, lists, dicts and objects with fields that hold them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors_in(one)
    elif hasattr(value, "parameters") and isinstance(value.parameters, torch.Tensor):
        yield value.parameters  # a distribution over latents

"""Remembers a module's tensors, their devices and its hooks, and puts them back.

Offload hooks of diffusers and accelerate leave traces when they are removed: a ``forward`` in the
instance, an empty registry, new parameter objects, pinned copies. A snapshot taken before makes
the undo exact. It owns references only; with ``keep_data`` it also owns the original values, on
the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

_FORWARD = ("forward", "_old_forward")
_HOOKS = ("_hf_hook", "_diffusers_hook")
_WARNING_METHODS = ("to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa")
_WATCHED = (*_FORWARD, *_HOOKS, *_WARNING_METHODS)


class Snapshot:
    """The state of ``root`` and all its submodules at construction."""

    def __init__(self, root: torch.nn.Module, *, keep_data: bool = False) -> None:
        self._root = root
        self._modules: dict[torch.nn.Module, _ModuleState] = {
            module: _ModuleState(module) for module in root.modules()
        }
        self._homes: dict[torch.Tensor, torch.device] = {}
        self._types: dict[torch.Tensor, torch.dtype] = {}
        self._data: dict[torch.Tensor, torch.Tensor] = {}
        self._pinned: set[torch.Tensor] = set()
        for tensor in tensors_of(root):
            self._homes[tensor], self._types[tensor] = tensor.device, tensor.dtype
            if tensor.device.type == "cpu" and tensor.is_pinned():
                self._pinned.add(tensor)
            if keep_data:
                self._data[tensor] = tensor.data.to("cpu")

    @property
    def host_bytes(self) -> int:
        """Bytes of the original values kept on the host; 0 without ``keep_data``."""
        return sum(data.nbytes for data in self._data.values())

    def restore(self) -> None:
        """Put everything back. Hooks must have been removed by whoever added them.

        Submodules that joined since (adapter layers) lose their empty registries and follow the
        root to its device.
        """
        for module in list(self._root.modules()):
            state = self._modules.get(module)
            if state is None:
                _ModuleState.forget_hooks(module)
        for state in self._modules.values():
            state.restore()
        home = next(iter(self._homes.values()), torch.device("cpu"))
        for tensor in tensors_of(self._root):
            self._restore_tensor(tensor, self._homes.get(tensor, home))

    def _restore_tensor(self, tensor: torch.Tensor, home: torch.device) -> None:
        original = self._data.get(tensor)
        dtype = self._types.get(tensor, tensor.dtype)
        if dtype != tensor.dtype and _loses(tensor.data, dtype):
            dtype = tensor.dtype
        if original is not None:
            tensor.data = original.to(home)
        elif tensor.device != home or tensor.dtype != dtype:
            # Another type is what a run left that broke off while its VAE was upcast: exact.
            tensor.data = tensor.data.to(home, dtype)
        elif home.type == "cpu" and tensor not in self._pinned and tensor.is_pinned():
            # Streams computed from page-locked copies; the system wants those pages back.
            tensor.data = tensor.data.clone()


class _ModuleState:
    """The entries of one module's ``__dict__`` that hooks replace."""

    def __init__(self, module: torch.nn.Module) -> None:
        own = vars(module)
        self._module = module
        self._attributes = {name: own[name] for name in _WATCHED if name in own}
        self._parameters = dict(module._parameters)
        self._buffers = dict(module._buffers)

    def restore(self) -> None:
        own = vars(self._module)
        for name, parameter in self._parameters.items():
            if name in self._module._parameters:
                self._module._parameters[name] = parameter
        for name, buffer in self._buffers.items():
            if name in self._module._buffers:
                self._module._buffers[name] = buffer
        if _holds_foreign_hooks(own, self._attributes):
            return
        for name in _WATCHED:
            if name in self._attributes:
                own[name] = self._attributes[name]
            else:
                own.pop(name, None)

    @staticmethod
    def forget_hooks(module: torch.nn.Module) -> None:
        """Clean a module that was no part of the snapshot, unless other hooks live in it."""
        own = vars(module)
        if not _holds_foreign_hooks(own, {}):
            for name in _WATCHED:
                own.pop(name, None)


def _holds_foreign_hooks(own: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether hooks that are neither ours nor of before are still in place: they stay."""
    registry = own.get("_diffusers_hook")
    if registry is not None and registry is not before.get("_diffusers_hook") and registry.hooks:
        return True
    hook = own.get("_hf_hook")
    return hook is not None and hook is not before.get("_hf_hook")


def _loses(data: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a cast to ``dtype`` would lose bits for good: weights seen while somebody stored
    them in a smaller type may have their own back by now."""
    if dtype.itemsize >= data.dtype.itemsize:
        return False
    return dtype.itemsize < 2 or not torch.equal(data.to(dtype).to(data.dtype), data)


def tensors_of(root: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Each parameter and buffer object of the module once."""
    seen: set[int] = set()
    for module in root.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor

"""Modules whose weights have shapes and types, and no bytes.

They live on a fake ``cuda`` device, which needs no GPU: on ``meta`` torch would take some
operations apart and forget memory formats.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("cuda:0")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOK_FLAGS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called",
               "_forward_pre_hooks_with_kwargs")  # fmt: skip
_OFFLOAD = (
    "_hf_hook",
    "_old_forward",
    "_diffusers_hook",
    "forward",
    "encode",
    "decode",
    "_lowtide_optimizer",
)

_COPIED = (
    torch.Tensor, nn.Module, dict, list, tuple, set, types.MethodType, functools.partial,
)  # fmt: skip
"""What may refer to weights or to the module itself."""
_SMALL = 1 << 20
"""Bytes up to which a tensor on the host that is no weight keeps its values: tables and the like.
"""


class _Mode(FakeTensorMode):
    """Fakes of ``cuda`` tensors also where the accelerator is another one (an NPU, say): torch
    would then ask CUDA's driver, which isn't there, for the current device."""

    @property
    def avoid_device_init(self) -> bool:
        return not torch.cuda.is_available()

    def dispatch(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """As ever; but values that are known never go to a device, which may not be there."""
        device = (kwargs or {}).get("device")
        if device is not None and torch.device(device).type not in ("cpu", "meta"):
            for one in args:
                if isinstance(one, FakeTensor):
                    one.constant = None
        return super().dispatch(func, types, args, kwargs or {})


def fake_mode() -> FakeTensorMode:
    """A world of fake tensors; those of one module and its inputs must be of the same one."""
    return _Mode(allow_non_fake_inputs=True)


@contextmanager
def on_meta() -> Iterator[None]:
    """Build modules inside without initialising weights, which takes longest of all."""
    names = [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")]
    kept = {name: getattr(nn.init, name) for name in names if callable(getattr(nn.init, name))}
    kinds: list[Any] = [
        nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.LayerNorm, nn.GroupNorm,
    ]  # fmt: skip
    resets = {kind: kind.reset_parameters for kind in kinds}
    try:
        for name in kept:
            setattr(nn.init, name, _untouched)
        for kind in kinds:
            kind.reset_parameters = _nothing
        with torch.device("meta"):
            yield
    finally:
        for name, function in kept.items():
            setattr(nn.init, name, function)
        for kind, reset in resets.items():
            kind.reset_parameters = reset


def fake_tensor(
    mode: FakeTensorMode, like: torch.Tensor, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """A fake of ``like`` on the fake device, in ``dtype`` if given and ``like`` is of floats."""
    if dtype is None or not like.is_floating_point():
        dtype = like.dtype
    shape, stride = tuple(like.shape), tuple(like.stride())
    empty = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    return FakeTensor(mode, empty, DEVICE)


def fake_copy(
    module: nn.Module,
    mode: FakeTensorMode,
    dtype_of: Callable[[str, torch.Tensor], torch.dtype | None] | None = None,
    emptied: tuple[str, ...] = (),
) -> nn.Module:
    """A copy of ``module`` with fakes for its weights, and without the hooks of who moves them.

    Weights are neither read nor copied, and ``module`` stays as it is. Another thread may be
    moving them meanwhile: what it exchanges while they are copied becomes a fake as well.

    Args:
        dtype_of: the type of the weight of that name; ``None`` = its own.
        emptied: names of attributes that are lists, and empty in the copy.
    """
    memo: dict[int, Any] = {}
    weights = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in weights:
        if id(tensor) not in memo:
            dtype = None if dtype_of is None else dtype_of(name, tensor)
            fake = fake_tensor(mode, tensor, dtype)
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=False)
            memo[id(tensor)] = fake
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if value is not None and name in _OFFLOAD:
                memo[id(value)] = None
            elif name in emptied and isinstance(value, list):
                memo[id(value)] = []
            elif not isinstance(value, _COPIED):
                memo[id(value)] = value  # settings and such: some can't be copied
        for name in _HOOKS:
            hooks = getattr(part, name, None)
            if hooks:
                memo[id(hooks)] = type(hooks)()
    with _Faking(mode):
        twin = copy.deepcopy(module, memo)
    del weights  # until here, so that no other object gets the identity of one that is exchanged
    for part in twin.modules():
        for name in _OFFLOAD:
            vars(part).pop(name, None)
        for name in _HOOK_FLAGS:
            flags = getattr(part, name, None)
            if flags:
                flags.clear()
    return twin.eval()


class _Faking(TorchFunctionMode):
    """While a module is copied: tensors that nobody foresaw become fakes, small ones are copied."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in (torch.Tensor.__deepcopy__, torch.Tensor.clone):
            return func(*args, **(kwargs or {}))
        tensor = args[0]
        if isinstance(tensor, FakeTensor):
            return tensor
        is_table = func is torch.Tensor.__deepcopy__  # a parameter is cloned
        if is_table and tensor.device.type == "cpu" and tensor.nbytes <= _SMALL:
            return func(*args, **(kwargs or {}))
        made = fake_tensor(self.mode, tensor)
        if func is torch.Tensor.__deepcopy__:
            args[1][id(tensor)] = made
        return made


def _untouched(tensor: Any, *_: Any, **__: Any) -> Any:
    return tensor


def _nothing(_module: Any) -> None:
    return None

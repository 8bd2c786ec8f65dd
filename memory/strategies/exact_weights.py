"""Takes a layer's weights where they are ready for use: in the middle of its module's forward.

Offload and casting hooks, accelerate's, diffusers' or ComfyUI's own, act around a module's call and
bring its weights to the device in the type of its input. What ``inside`` runs in place of the
module's function finds them there, and may use them for as long as it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Result = TypeVar("Result")


def weights_of(module: Any, data: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Copies of a small layer's weights, on the device."""

    def copies(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight.clone(), None if bias is None else bias.clone()

    return inside(module, data, device, copies)


def inside(
    module: Any,
    data: Tensor,
    device: torch.device,
    work: Callable[[Tensor, Tensor | None], Result],
) -> Result:
    """``work(weight, bias)`` run inside the module's forward for input like ``data``; its result.

    For convolutions, linear layers and group norms.
    """
    if isinstance(module, torch.nn.Linear):
        shape: tuple[int, ...] = (1, module.in_features)
    elif isinstance(module, torch.nn.GroupNorm):
        shape = (1, module.num_channels, 1, 2)
    else:
        shape = (1, module.in_channels, *module.kernel_size)
    taking = _Taking(work)
    with taking:
        module(torch.zeros(shape, dtype=data.dtype, device=device))
    return taking.results[0]


class _Taking(TorchFunctionMode):
    """Calls ``work`` with the weights of the first layer function that is called."""

    _FUNCTIONS = (F.conv2d, F.linear, F.group_norm)

    def __init__(self, work: Callable[[Tensor, Tensor | None], Any]) -> None:
        super().__init__()
        self._work = work
        self.results: list[Any] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if self.results or func not in self._FUNCTIONS:
            return func(*args, **named)
        place = 2 if func is F.group_norm else 1
        weight = args[place] if len(args) > place else named["weight"]
        bias = args[place + 1] if len(args) > place + 1 else named.get("bias")
        self.results.append(self._work(weight, bias))
        return args[0]

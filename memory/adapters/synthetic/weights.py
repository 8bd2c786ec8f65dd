"""Random weights at memory speed: a model's shape without its checkpoint.

Drawing billions of normal numbers takes minutes, so each parameter is cut from one seeded pool of
normal noise and scaled by its fan-in, which keeps activations of order one in half precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# A prime length: rows of a matrix, whose lengths are round numbers, start at different offsets.
_POOL_LENGTH = 4_194_301


class Maker:
    """Turns model constructors into modules with seeded weights, or on the meta device."""

    def __init__(self, dtype: torch.dtype, seed: int, on_meta: bool = False) -> None:
        self.dtype = dtype
        self.on_meta = on_meta
        self._position = 0
        self._pool = torch.empty(0)
        if not on_meta:
            generator = torch.Generator("cpu").manual_seed(seed)
            self._pool = torch.randn(_POOL_LENGTH, generator=generator).to(dtype)

    def make(self, construct: Callable[[], Any]) -> Any:
        """The module ``construct()`` gives, in evaluation mode, frozen, weights filled."""
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            module = construct()
        self._fill(module)
        _tie(module)
        return module.eval().requires_grad_(False)

    def _fill(self, module: nn.Module) -> None:
        _tie(module)
        drawn: dict[int, nn.Parameter] = {}
        for owner in module.modules():
            for name, empty in list(owner.named_parameters(recurse=False)):
                if id(empty) not in drawn:
                    drawn[id(empty)] = self._draw(name, empty.shape)
                owner.register_parameter(name, drawn[id(empty)])
            for buffer in owner.buffers(recurse=False):
                if buffer.is_floating_point():
                    buffer.data = buffer.data.to(self.dtype)

    def _draw(self, name: str, shape: torch.Size) -> nn.Parameter:
        weight = torch.empty(shape, dtype=self.dtype, device="meta" if self.on_meta else "cpu")
        if self.on_meta:
            pass
        elif name.endswith("bias"):
            weight.zero_()
        elif len(shape) < 2:
            weight.fill_(1)
        else:
            self._pour(weight.view(-1), scale=(weight.numel() / shape[0]) ** -0.5)
        return nn.Parameter(weight, requires_grad=False)

    def _pour(self, flat: torch.Tensor, scale: float) -> None:
        done = 0
        while done < flat.numel():
            count = min(flat.numel() - done, _POOL_LENGTH - self._position)
            noise = self._pool[self._position : self._position + count]
            torch.mul(noise, scale, out=flat[done : done + count])
            self._position = (self._position + count) % _POOL_LENGTH
            done += count


def _tie(module: Any) -> None:
    """Embedding tables some text encoders share are one tensor again."""
    tie = getattr(module, "tie_weights", None)
    if tie is not None:
        tie()


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, shared ones counted once."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())

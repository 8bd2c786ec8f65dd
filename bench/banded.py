"""An untiled run in less memory, to compare with where the plain one does not fit into RAM.

Maps stay whole, and so do the statistics of normalisation; only convolutions, whose scratch copies
are the largest part of the need, are computed in bands of rows with their true neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

ROWS = 64
"""Rows of a convolution's output computed at once."""


@contextmanager
def banded(model: torch.nn.Module) -> Iterator[None]:
    """Convolutions of ``model`` in bands, and its SiLUs in place, for the block.

    For models that run without gradients and use no map again after its SiLU.
    """
    convolutions = [it for it in model.modules() if isinstance(it, torch.nn.Conv2d)]
    silus = [it for it in model.modules() if isinstance(it, torch.nn.SiLU) and not it.inplace]
    for layer in convolutions:
        layer.forward = _Bands(layer)
    for silu in silus:
        silu.inplace = True
    try:
        yield
    finally:
        for layer in convolutions:
            del layer.forward
        for silu in silus:
            silu.inplace = False


class _Bands:
    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """As the layer, ``(n, c, h, w)`` in and out."""
        layer = self.layer
        (step, _), (above, aside), (reach, _) = layer.stride, layer.padding, layer.kernel_size
        height, width = (
            (size + 2 * pad - kernel) // stride + 1
            for size, pad, kernel, stride in zip(
                x.shape[2:], layer.padding, layer.kernel_size, layer.stride, strict=True
            )
        )
        found = x.new_empty(x.shape[0], layer.out_channels, height, width)
        for first in range(0, height, ROWS):
            last = min(height, first + ROWS)
            top, bottom = first * step - above, (last - 1) * step - above + reach
            band = x[:, :, max(0, top) : min(x.shape[2], bottom)]
            band = functional.pad(band, (aside, aside, max(0, -top), max(0, bottom - x.shape[2])))
            found[:, :, first:last] = functional.conv2d(
                band, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups
            )
        return found

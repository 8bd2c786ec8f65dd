"""Runs a program of ``exact_program`` over strips of rows, exact to rounding.

Between two layers the map of the whole image waits where ``Workshop.place`` says. A pass reads a
strip with the rows its convolution needs beyond it, normalises it by the statistics of the whole
map, convolves it, and writes it to the next map, of which it gathers the statistics.

A layer's weights are taken from inside a call of its module, and one call serves all strips: so
offload and casting hooks move and cast them once a layer, not once a tile.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from .exact_attention import attend
from .exact_costs import pass_of, strip_height
from .exact_map import Map, Workshop, affine_of, normalised
from .exact_program import Block, Layer, Step
from .exact_weights import inside, weights_of


def run(program: tuple[Step, ...], sample: Tensor, shop: Workshop) -> Tensor:
    """The program's result for ``sample`` (N, C, H, W), on its device and in its type."""
    current = Map(sample)
    for step in program:
        if isinstance(step, Layer):
            current = _layer(step, current, shop)
        elif isinstance(step, Block):
            hidden = _layer(step.first, current, shop)
            current = _layer(step.second, hidden, shop, beside=current, block=step)
            del hidden  # it would lie there through the next block
        else:
            current = attend(step, current, shop)
    return current.data.to(sample.device)  # the result waited as the maps do: no strip is beside it


def _layer(
    layer: Layer,
    source: Map,
    shop: Workshop,
    beside: Map | None = None,
    block: Block | None = None,
) -> Map:
    conv = layer.conv
    images, _, *edges = source.data.shape
    one = pass_of(layer, *edges)
    shortcut = None
    if block is not None and block.shortcut is not None:
        shortcut = weights_of(block.shortcut, source.data, shop.device)
    affine = None if layer.norm is None else affine_of(layer.norm, source, shop)
    if beside is not None and beside.ours and shortcut is None:
        result = Map(beside.data, ours=True)
    else:
        shape = (images, conv.out_channels, one.rows, one.columns)
        where = shop.place(math.prod(shape) * source.data.element_size(), source, beside)
        result = Map(source.data.new_empty(shape, device=where), ours=True)
    size = strip_height(one, images, source.data.element_size(), shop.room)

    def strips(weight: Tensor, bias: Tensor | None) -> Map:
        for first in range(0, one.rows, size):
            last = min(first + size, one.rows)
            strip = _read(layer, source, (first, last), one.high, affine, shop)
            done = _convolve(layer, strip, weight, bias)
            del strip
            if beside is not None and block is not None:
                done = _add(done, beside, (first, last), shortcut, block.scale, shop)
            result.note(done)
            result.data[:, :, first:last].copy_(done)
            del done
        return result

    return inside(conv, source.data, shop.device, strips)


def _read(
    layer: Layer,
    source: Map,
    span: tuple[int, int],
    high: int,
    affine: tuple[Tensor, Tensor] | None,
    shop: Workshop,
) -> Tensor:
    """The input rows of output rows ``span``, normalised and padded at the map's border."""
    conv = layer.conv
    left, right, top, _ = layer.padding
    begin = span[0] * conv.stride[0] - top
    end = (span[1] - 1) * conv.stride[0] - top + conv.kernel_size[0]
    first, last = max(begin, 0), min(end, high)
    if layer.doubled:
        half = source.data[:, :, first // 2 : (last + 1) // 2].to(shop.device)
        strip = F.interpolate(half, scale_factor=2.0, mode="nearest")
        strip = strip[:, :, first - first // 2 * 2 :][:, :, : last - first]
        del half
    else:
        strip = source.data[:, :, first:last].to(shop.device)
    if affine is not None:
        strip = normalised(strip, affine)
    # Columns are padded by the convolution itself where both sides are alike.
    sides = (0, 0) if left == right else (left, right)
    border = (*sides, first - begin, end - last)
    return F.pad(strip, border) if any(border) else strip


def _convolve(layer: Layer, strip: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    left, right = layer.padding[:2]
    padding = (0, left if left == right else 0)
    return F.conv2d(strip, weight, bias, layer.conv.stride, padding, 1, layer.conv.groups)


def _add(
    done: Tensor,
    beside: Map,
    span: tuple[int, int],
    shortcut: tuple[Tensor, Tensor | None] | None,
    scale: float,
    shop: Workshop,
) -> Tensor:
    other = beside.data[:, :, span[0] : span[1]].to(shop.device)
    if shortcut is not None:
        other = F.conv2d(other, *shortcut)
    done += other
    return done if scale == 1.0 else done.div_(scale)

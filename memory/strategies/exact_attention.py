"""Self-attention over a whole map, some queries at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .exact_map import Map, Workshop, affine_of, normalised
from .exact_program import Attention
from .exact_weights import weights_of

_SCORES = 16
"""Bytes a query chunk may take per pair of tokens where attention has no fused kernel."""


def attend(step: Attention, source: Map, shop: Workshop) -> Map:
    scale, shift = (t[..., 0] for t in affine_of(step.norm, source, shop))
    query, key, value, out = (
        weights_of(module, source.data, shop.device)
        for module in (step.query, step.key, step.value, step.out)
    )
    flat = source.data.flatten(2)
    images, channels, count = flat.shape
    itemsize = flat.element_size()

    def tokens(strip: Tensor) -> Tensor:
        return normalised(strip, (scale, shift), activate=False).transpose(1, 2)

    def pieces(bytes_each: int) -> Iterator[slice]:
        size = max(1, shop.room // (images * bytes_each))
        for first in range(0, count, size):
            yield slice(first, min(first + size, count))

    def heads(mixed: Tensor) -> Tensor:
        return mixed.unflatten(2, (step.heads, -1)).transpose(1, 2)

    keys, values = (
        torch.empty((images, count, w.shape[0]), dtype=flat.dtype, device=shop.device)
        for w, _ in (key, value)
    )
    for piece in pieces(channels * (4 * itemsize + 4)):
        part = tokens(flat[:, :, piece].to(shop.device))
        keys[:, piece] = F.linear(part, *_matrix(key))
        values[:, piece] = F.linear(part, *_matrix(value))
        del part
    result = Map(flat if source.ours else torch.empty_like(flat, device=shop.stage), ours=True)
    for piece in pieces(step.heads * count * _SCORES + channels * (6 * itemsize + 4)):
        strip = flat[:, :, piece].to(shop.device)
        asked = heads(F.linear(tokens(strip), *_matrix(query)))
        found = F.scaled_dot_product_attention(asked, heads(keys), heads(values))
        del asked
        mixed = F.linear(found.transpose(1, 2).flatten(2), *_matrix(out))
        del found
        done = mixed.transpose(1, 2) + strip
        del mixed, strip
        if step.scale != 1.0:
            done /= step.scale
        result.note(done[..., None])
        result.data[:, :, piece].copy_(done)
        del done
    result.data = result.data.unflatten(2, source.data.shape[2:])
    return result


def _matrix(taken: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """A linear layer's weights, of a linear layer or of a convolution of one pixel."""
    weight, bias = taken
    return weight.flatten(1), bias

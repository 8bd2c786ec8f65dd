"""Self-attention over a whole map, some queries at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .exact_costs import attention_bytes, beside
from .exact_map import Map, Workshop, affine_of, normalised
from .exact_program import Attention
from .exact_weights import weights_of


def attend(step: Attention, source: Map, shop: Workshop) -> Map:
    """The map after self-attention over all of it.

    Keys and values are used whole if half the room holds them. Else they wait as maps do, and come
    piece by piece from wherever that is: the result does not depend on it.
    """
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

    def heads(mixed: Tensor) -> Tensor:
        return mixed.unflatten(2, (step.heads, -1)).transpose(1, 2)

    room = shop.room // images
    held, query_bytes = attention_bytes(step, count, itemsize)
    resident = held <= room // 2
    result = source
    if not source.ours:
        place = shop.place(flat.nbytes)
        result = Map(torch.empty_like(flat, device=place), ours=True)
    where = shop.device if resident else shop.place(images * held, result)
    keys, values = (
        torch.empty((images, count, weight.shape[0]), dtype=flat.dtype, device=where)
        for weight, _ in (key, value)
    )
    left = room - held if resident else room
    for piece in _pieces(count, left // (channels * (4 * itemsize + 4))):
        part = tokens(flat[:, :, piece].to(shop.device))
        keys[:, piece].copy_(F.linear(part, *_matrix(key)))
        values[:, piece].copy_(F.linear(part, *_matrix(value)))
        del part
    result = Map(flat if source.ours else result.data, ours=True)
    if resident:
        asking = left // query_bytes
    else:
        asking = room // (4 * (beside(step, itemsize) + 8 * channels))
    for piece in _pieces(count, asking):
        strip = flat[:, :, piece].to(shop.device)
        asked = heads(F.linear(tokens(strip), *_matrix(query)))
        if resident:
            found = F.scaled_dot_product_attention(asked, heads(keys), heads(values))
        else:
            found = _streamed(asked, keys, values, heads, room // 2)
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


def _streamed(
    asked: Tensor, keys: Tensor, values: Tensor, heads: Callable[[Tensor], Tensor], room: int
) -> Tensor:
    """Attention of some queries (N, heads, Q, D) over keys and values that come piece by piece.

    The softmax is carried along: its highest score, its sum, and the weighted values so far
    (Milakov and Gimelshein 2018, Online normalizer calculation for softmax).
    """
    images, count, depth, each = asked.shape
    wanted = asked.float() * each**-0.5
    highest = wanted.new_full((images, count, depth, 1), float("-inf"))
    total = torch.zeros_like(highest)
    mixed = torch.zeros_like(wanted)
    per_key = count * (depth * 3 * 4 + each * 2 * (keys.element_size() + 4))
    for piece in _pieces(keys.shape[1], room // per_key):
        key, value = (heads(t[:, piece].to(asked.device)).float() for t in (keys, values))
        scores = wanted @ key.transpose(-1, -2)
        now = torch.maximum(highest, scores.amax(-1, keepdim=True))
        scores.sub_(now).exp_()
        faded = (highest - now).exp_()
        total = total.mul_(faded).add_(scores.sum(-1, keepdim=True))
        mixed = mixed.mul_(faded).add_(scores @ value)
        highest = now
        del key, value, scores
    return mixed.div_(total).to(asked.dtype)


def _pieces(count: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def _matrix(taken: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """A linear layer's weights, of a linear layer or of a convolution of one pixel."""
    weight, bias = taken
    return weight.flatten(1), bias

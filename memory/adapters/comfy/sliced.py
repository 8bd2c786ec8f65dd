"""Attention computed slice by slice, so that the matrix of scores never grows with the image.

A slice is some heads of some images and some of their rows of queries. Scores are float32 whatever
the model's type, as in torch's own unfused kernel, and become probabilities in place: a slice has
one matrix, of at most ``MOST_BYTES``, and a float32 copy of what it multiplies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...units import MIB

MOST_BYTES = 64 * MIB
"""Of one matrix of scores."""
_COMPUTE = torch.float32
_ONES = 1e-30
"""Least sum of a row of probabilities: a row whose every key is masked out becomes zeros."""


@dataclass(frozen=True)
class Slices:
    """How much is computed at once: images of the batch, heads, rows of queries."""

    images: int
    heads: int
    rows: int


def heads_at_once(size: int | str, heads: int) -> int:
    """``attention_slice_size`` as a number: ``auto`` is half of the heads, ``max`` one."""
    if size == "max":
        return 1
    return max(1, heads // 2) if size == "auto" else min(int(size), heads)


def slices_for(images: int, heads: int, rows: int, keys: int, *, most: int = MOST_BYTES) -> Slices:
    """The largest slices of at most ``heads`` heads whose scores fit into ``most`` bytes.

    Rows are cut before heads, and images before rows: fewer, larger products are faster.
    """
    room = max(1, most // (keys * _COMPUTE.itemsize))
    heads = min(heads, room)
    rows = min(rows, room // heads)
    images = min(images, max(1, room // (heads * rows)))
    return Slices(images, heads, rows)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    heads_at_once: int,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
    most: int = MOST_BYTES,
) -> torch.Tensor:
    """``softmax(q k^T scale + mask) v`` in slices.

    Args:
        q: ``[images, heads, rows, size]``.
        k, v: ``[images or 1, heads, keys, size]``; fewer heads that divide q's are shared by
            neighbouring heads of q (grouped queries).
        mask: broadcast to ``[images, heads, rows, keys]``; added to the scores, or, of booleans,
            true where a key takes part.
        scale: of the scores; ``None`` = ``size ** -0.5``.
        most: bytes of one matrix of scores.

    Returns:
        ``[images, rows, heads, v's size]``, contiguous, in v's type.
    """
    images, heads, rows, size = q.shape
    keys = k.shape[-2]
    shared = heads // k.shape[1]
    k, v = (each.expand(images, -1, -1, -1) for each in (k, v))
    if mask is not None:
        mask = mask.expand(images, heads, rows, keys)
    factor = size**-0.5 if scale is None else scale
    result = torch.empty((images, rows, heads, v.shape[-1]), dtype=v.dtype, device=v.device)
    plan = slices_for(images, min(heads_at_once, heads), rows, keys, most=most)
    for some in _ranges(images, plan.images):
        for group in _ranges(heads, plan.heads):
            some_k, some_v = (_of_group(each[some], group, shared) for each in (k, v))
            for part in _ranges(rows, plan.rows):
                queries = q[some, group, part].to(_COMPUTE) * factor
                scores = queries @ some_k.transpose(-2, -1)
                del queries
                if mask is not None:
                    _apply_mask(scores, mask[some, group, part])
                _to_probabilities(scores)
                result[some, part, group] = (scores @ some_v).transpose(1, 2)
                del scores
    return result


def _ranges(total: int, step: int) -> Iterator[slice]:
    for first in range(0, total, step):
        yield slice(first, min(first + step, total))


def _of_group(tensor: torch.Tensor, group: slice, shared: int) -> torch.Tensor:
    """The float32 keys or values of a group of query heads."""
    if shared == 1:
        return tensor[:, group].to(_COMPUTE)
    wanted = [head // shared for head in range(group.start, group.stop)]
    return tensor[:, wanted].to(_COMPUTE)


def _apply_mask(scores: torch.Tensor, mask: torch.Tensor) -> None:
    if mask.dtype is torch.bool:
        scores.masked_fill_(mask.logical_not(), float("-inf"))
    else:
        scores.add_(mask)


def _to_probabilities(scores: torch.Tensor) -> None:
    # Finite, so that a row of minus infinities turns into zeros and not into NaN.
    highest = scores.amax(-1, keepdim=True).clamp_min_(torch.finfo(scores.dtype).min)
    scores.sub_(highest).exp_()
    scores.div_(scores.sum(-1, keepdim=True).clamp_min_(_ONES))


def as_core_function(size: int | str) -> Any:
    """An override of ComfyUI's attention that slices.

    A plain function that captures a number, because older cores deep-copy what options hold.
    """

    def lowtide_sliced(
        _stock: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        heads: int,
        mask: torch.Tensor | None = None,
        attn_precision: Any = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        **options: Any,
    ) -> torch.Tensor:
        if not skip_reshape:
            grouped = bool(options.get("enable_gqa", False))
            edge = q.shape[-1] // heads
            q, k, v = (
                each.reshape(
                    q.shape[0], -1, each.shape[-1] // edge if grouped else heads, edge
                ).transpose(1, 2)
                for each in (q, k, v)
            )
        if mask is not None:
            mask = mask.unsqueeze(1) if mask.ndim == 3 else mask
        at_once = heads_at_once(size, q.shape[1])
        result = attend(q, k, v, heads_at_once=at_once, mask=mask, scale=options.get("scale"))
        return result.transpose(1, 2) if skip_output_reshape else result.flatten(2)

    return lowtide_sliced

"""Eight-bit storage of weights: float8_e4m3fn codes, companded, with a scale per output channel.

e4m3 keeps three bits of mantissa, so that its error is 2.6% of a value wherever the value lies in
its range: no scale can halve that. A root can. The code holds the n-th power of the weight, and
the weight is its n-th root:

    weight = scale * sign(code) * (|code| / 448) ** (1 / n)

where the scale is the channel's largest weight, rounded to the eight bits that every type holds
exactly. That divides the relative error by n and the range, in powers of two, by n too. Two suits
any distribution, three one without long tails; which one loses less is measured for each tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch

CODES = torch.float8_e4m3fn
LARGEST = float(torch.finfo(CODES).max)
ROOTS = (2, 3)

_CHUNK = 1 << 19
_SAMPLE = 1 << 18
_SAMPLE_ROWS = 64
_LEAST = 2.0**-100
"""Channels whose largest weight is below this are stored as zero."""


@dataclass(frozen=True)
class Encoded:
    """A tensor in eight bits.

    Attributes:
        codes: float8_e4m3fn, of the tensor's shape.
        scale: float32, (channels, 1, ...): one dimension for each of the tensor's.
        root: n above.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    root: int

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scale."""
        return self.codes.nbytes + self.scale.nbytes

    def decode(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weights again."""
        return decode(self.codes, self.scale, self.root, dtype)


def encode(weight: torch.Tensor, root: int | None = None) -> Encoded | None:
    """Store ``weight``, of shape (channels, ...), on the device it is on.

    Temporary memory stays at a few MiB, whatever the size.

    Args:
        root: 2 or 3; ``None`` measures which loses less.

    Returns:
        ``None`` if a weight is infinite or not a number: there is no scale for it.
    """
    source = weight.detach()
    if root is None:
        root = choose_root(source)
    channels = source.shape[0]
    rows = source.reshape(channels, -1)
    codes = torch.empty(rows.shape, dtype=CODES, device=source.device)
    scale = torch.ones(channels, 1, dtype=torch.float32, device=source.device)
    for part in _parts(rows):
        steps = rescale(codes[part], scale[part], rows[part], root)
        if not steps:
            return None
    shape = (channels, *(1 for _ in source.shape[1:]))
    return Encoded(codes.view(source.shape), scale.view(shape), root)


def rescale(codes: torch.Tensor, scale: torch.Tensor, rows: torch.Tensor, root: int) -> bool:
    """Fill ``codes`` and ``scale`` (channels, 1) from ``rows``; False if one is not finite."""
    values = rows.float()
    largest = values.abs().amax(dim=1, keepdim=True) if rows.shape[1] else scale.clone()
    if not bool(torch.isfinite(largest).all()):
        return False
    own = largest.bfloat16().float()
    scale.copy_(torch.where(largest < _LEAST, torch.ones_like(own), own))
    write(codes, scale, values, root)
    return True


def write(codes: torch.Tensor, scale: torch.Tensor, values: torch.Tensor, root: int) -> None:
    """Fill ``codes`` from ``values`` under a given ``scale``; what is beyond its range is cut."""
    powered = values * (LARGEST ** (1 / root) / scale)
    powered *= powered.abs() if root == 2 else powered.square()
    codes.copy_(powered.clamp_(-LARGEST, LARGEST))


def decode(codes: torch.Tensor, scale: torch.Tensor, root: int, dtype: torch.dtype) -> torch.Tensor:
    """New weights of type ``dtype`` from codes and scales on one device; no memory beside them.

    Codes are exact in every type. On a device the scale is multiplied in float32, for divided by
    the largest code's root it might be subnormal in float16. On a CPU a table is five times
    faster.
    """
    if codes.device.type == "cpu":
        table = _table(root, dtype)
        places = codes.view(torch.uint8).reshape(-1).int()
        return table.index_select(0, places).view(codes.shape).mul_(scale.to(dtype))
    weight = codes.to(dtype).abs_()
    weight = weight.sqrt_() if root == 2 else weight.pow_(1 / root)
    signs = codes.view(torch.int8)
    return weight.copysign_(signs).mul_(scale * LARGEST ** (-1 / root))


@cache
def _table(root: int, dtype: torch.dtype) -> torch.Tensor:
    """What each of the 256 codes stands for, in parts of the scale; codes of NaN never occur."""
    with torch.inference_mode(False):
        values = torch.arange(256).to(torch.uint8).view(CODES).double().nan_to_num() / LARGEST
        return (values.abs() ** (1 / root)).copysign(values).to(dtype)


def choose_root(weight: torch.Tensor) -> int:
    """The root that loses less of ``weight`` (channels, ...), by a sample of its channels."""
    rows = weight.detach().reshape(weight.shape[0], -1)
    count = max(1, min(_SAMPLE_ROWS, _SAMPLE // max(1, rows.shape[1])))
    sample = rows[:: max(1, math.ceil(rows.shape[0] / count))].float()
    return min(ROOTS, key=lambda root: _loss(sample, root))


def relative_error(approximation: torch.Tensor, exact: torch.Tensor) -> float:
    """The L2 norm of the difference, in parts of the norm of ``exact``."""
    difference = approximation.double() - exact.double()
    return float(difference.norm() / exact.double().norm().clamp_min(1e-300))


def _loss(sample: torch.Tensor, root: int) -> float:
    stored = encode(sample, root)
    return math.inf if stored is None else float((stored.decode() - sample).square().sum())


def _parts(rows: torch.Tensor) -> Iterator[slice]:
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        yield slice(start, start + step)

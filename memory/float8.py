"""Eight-bit storage of weights: float8_e4m3fn codes, companded, with a scale per output channel.

As numbers, e4m3 values have three bits of mantissa: an error of 2.6% of any value, which no scale
can lower. Weights are bell-shaped, and most of e4m3's range would be spent on weights that are
nearly zero. So a code stands for its place among the codes, and places are spread over the
channel's range by a curve: dense where weights are, sparse in the tails.

    weight = scale * sign * curve(place),    place = 0 .. 126

``scale`` is the channel's largest weight, rounded to the eight bits of mantissa that every type
holds exactly. The curves are inverse error functions, the best for a normal distribution with
that many standard deviations up to its largest weight (Panter and Dite, 1951), and a square root
of the code's own value for the longest tails. Which one loses least is measured for each tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch

CODES = torch.float8_e4m3fn
LARGEST = float(torch.finfo(CODES).max)
LAST = 126
"""The place of the largest code; the one above is not a number."""

ROOT = 0.0
CURVES = (3.0, 3.75, 4.75, ROOT)
"""Standard deviations up to the largest weight, or ``ROOT``."""

LEAST = 1 << 14
"""Weights of fewer elements keep their type: decoding them costs more than they take."""

# First and last layers, and what embeds time, text and size, stand beside the blocks.
_BLOCKS = re.compile(r"block|layer|refiner|transformer")
_DELICATE = re.compile(r"final|guidance|embed|time|norm|^input_blocks\.0(\.|$)")
# A UNet's signal passes these without a way around them, so that their error is the output's: on
# SDXL's shape 5% of the bytes make half of it. Names of ComfyUI's and of diffusers' UNets.
_TRUNK = re.compile(
    r"^(input_blocks|middle_block|output_blocks|down_blocks|mid_block|up_blocks)\..*"
    r"\.(proj_in|proj_out|skip_connection|conv_shortcut|op)$"
    r"|^output_blocks\.\d+\.\d+\.conv$|(down|up)samplers\.\d+\.conv$"
)

_STEPS = 1 << 14
_CHUNK = 1 << 19
_SAMPLE = 1 << 18
_SAMPLE_ROWS = 64
_LEAST_SCALE = 2.0**-100
"""Channels whose largest weight is below this are stored as zero."""


def in_a_block(name: str) -> bool:
    """Whether a layer of a denoiser is one of its blocks' rather than a delicate one.

    Args:
        name: dotted, as seen from the denoiser. First and last layers and embeddings are delicate,
            and what all of a UNet's signal passes.
    """
    top = name.partition(".")[0]
    delicate = _DELICATE.search(top) or _DELICATE.match(name) or _TRUNK.search(name)
    return bool(_BLOCKS.search(top)) and not delicate


@dataclass(frozen=True)
class Encoded:
    """A tensor in eight bits.

    Attributes:
        codes: float8_e4m3fn, of the tensor's shape.
        scale: float32, (channels, 1, ...): one dimension for each of the tensor's.
        curve: one of ``CURVES``.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    curve: float

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scale."""
        return self.codes.nbytes + self.scale.nbytes

    def decode(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weights again."""
        return decode(self.codes, self.scale, self.curve, dtype)


def encode(weight: torch.Tensor, curve: float | None = None) -> Encoded | None:
    """Store ``weight``, of shape (channels, ...), on the device it is on.

    Temporary memory stays at a few MiB, whatever the size.

    Args:
        curve: one of ``CURVES``; ``None`` measures which loses least.

    Returns:
        ``None`` if a weight is infinite or not a number: there is no scale for it.
    """
    source = weight.detach()
    if curve is None:
        curve = choose_curve(source)
    channels = source.shape[0]
    rows = _rows(source)
    codes = torch.zeros(rows.shape, dtype=torch.uint8, device=source.device).view(CODES)
    scale = torch.ones(channels, 1, dtype=torch.float32, device=source.device)
    for part in _parts(rows) if rows.numel() else ():
        values = rows[part].float()
        largest = values.abs().amax(dim=1, keepdim=True)
        if not bool(torch.isfinite(largest).all()):
            return None
        rounded = largest.bfloat16().float()
        scale[part] = torch.where(largest < _LEAST_SCALE, torch.ones_like(rounded), rounded)
        write(codes[part], scale[part], values, curve)
    shape = (channels, *(1 for _ in source.shape[1:]))
    return Encoded(codes.view(source.shape), scale.view(shape), curve)


def write(codes: torch.Tensor, scale: torch.Tensor, values: torch.Tensor, curve: float) -> None:
    """Fill ``codes`` from float32 ``values`` under a given ``scale``; what is beyond it is cut."""
    parts = values / scale
    if curve == ROOT:
        codes.copy_(parts.mul_(parts.abs()).mul_(LARGEST).clamp_(-LARGEST, LARGEST))
        return
    steps = parts.mul_(_STEPS).add_(_STEPS).round_().clamp_(0, 2 * _STEPS).int()
    nearest = _nearest(curve).to(codes.device, non_blocking=True)
    found = nearest.index_select(0, steps.view(-1))
    codes.view(torch.uint8).copy_(found.view(codes.shape))


def decode(
    codes: torch.Tensor, scale: torch.Tensor, curve: float, dtype: torch.dtype
) -> torch.Tensor:
    """New weights of type ``dtype`` from codes and scales on one device.

    By a table of the 256 codes, so that they are the same to the bit on every device.
    ``decode_bytes`` is the memory it takes beside its result.
    """
    table = _table(curve, dtype).to(codes.device, non_blocking=True)
    weight = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    flat, places = weight.view(-1), codes.reshape(-1).view(torch.uint8)
    for start in range(0, flat.numel(), _CHUNK):
        part = slice(start, start + _CHUNK)
        torch.index_select(table, 0, places[part].int(), out=flat[part])
    return weight.mul_(scale.to(dtype))


def decode_bytes(count: int) -> int:
    """Bytes that decoding ``count`` elements takes for a moment, beside codes and result."""
    return 4 * min(count, _CHUNK) + 4096


def choose_curve(weight: torch.Tensor) -> float:
    """The curve that loses least of ``weight`` (channels, ...), by a sample of its channels."""
    rows = _rows(weight.detach())
    if not rows.numel():
        return CURVES[0]
    count = max(1, min(_SAMPLE_ROWS, _SAMPLE // max(1, rows.shape[1])))
    sample = rows[:: max(1, math.ceil(rows.shape[0] / count))].float()
    return min(CURVES, key=lambda curve: _loss(sample, curve))


def relative_error(approximation: torch.Tensor, exact: torch.Tensor) -> float:
    """The L2 norm of the difference, in parts of the norm of ``exact``."""
    difference = approximation.double() - exact.double()
    return float(difference.norm() / exact.double().norm().clamp_min(1e-300))


@cache
def _table(curve: float, dtype: torch.dtype) -> torch.Tensor:
    """What each of the 256 codes stands for, in parts of the scale; NaN's codes never occur."""
    with torch.inference_mode(False):
        codes = torch.arange(256, dtype=torch.uint8)
        if curve == ROOT:
            values = codes.view(CODES).double().nan_to_num().abs().div(LARGEST).sqrt()
        else:
            edge = curve / math.sqrt(6)
            places = codes.bitwise_and(127).clamp(max=LAST).double()
            values = torch.special.erfinv(places * (math.erf(edge) / LAST)) / edge
        return torch.where(codes < 128, values, -values).to(dtype)


@cache
def _nearest(curve: float) -> torch.Tensor:
    """The code nearest to each of the numbers from -1 to 1 in steps of ``1 / _STEPS``."""
    with torch.inference_mode(False):
        levels = _table(curve, torch.float64)[: LAST + 1]
        numbers = torch.arange(-_STEPS, _STEPS + 1, dtype=torch.float64) / _STEPS
        places = torch.bucketize(numbers.abs(), (levels[1:] + levels[:-1]) / 2)
        negative = (numbers < 0) & (places > 0)
        return torch.where(negative, places + 128, places).to(torch.uint8)


def _loss(sample: torch.Tensor, curve: float) -> float:
    stored = encode(sample, curve)
    return math.inf if stored is None else float((stored.decode() - sample).square().sum())


def _rows(weight: torch.Tensor) -> torch.Tensor:
    return weight.reshape(weight.shape[0], math.prod(weight.shape[1:]))


def _parts(rows: torch.Tensor) -> Iterator[slice]:
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        yield slice(start, start + step)

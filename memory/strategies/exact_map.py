"""A map of the whole image between two layers, its statistics, and its normalisation by strips."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .exact_weights import weights_of


@dataclass(frozen=True)
class Workshop:
    """``room`` bytes of strips at once on ``device``.

    Maps wait on ``stage``; those that fit within ``keep`` bytes stay on the device.
    """

    device: torch.device
    stage: torch.device
    room: int
    keep: int = 0

    def place(self, size: int, *alive: Map | None) -> torch.device:
        """Where a map of ``size`` bytes belongs while those of ours in ``alive`` are."""
        held = sum(one.data.nbytes for one in alive if one is not None and one.counts(self.device))
        return self.device if held + size <= self.keep else self.stage


@dataclass
class Map:
    """(N, C, H, W) between two layers, with the mean and variance of each channel of each image."""

    data: Tensor
    ours: bool = False
    moments: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)

    def counts(self, device: torch.device) -> bool:
        """Whether it is one of ours and lies on ``device``."""
        return self.ours and self.data.device == device

    def note(self, strip: Tensor) -> None:
        """Gather the statistics of a strip on the device, some channels at a time."""
        count = strip.shape[2] * strip.shape[3]
        parts = [
            torch.var_mean(part.float(), dim=(2, 3), correction=0)
            for part in strip.split(max(1, strip.shape[1] // 8), dim=1)
        ]
        variance, mean = (
            torch.cat(found, dim=1).to("cpu").double() for found in zip(*parts, strict=True)
        )
        self.moments.append((count, mean, variance))

    def statistics(self, groups: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of each group of each image, (N, groups), float64 on the CPU."""
        counts = torch.tensor([count for count, _, _ in self.moments], dtype=torch.float64)
        share = (counts / counts.sum())[:, None, None]
        means = torch.stack([mean for _, mean, _ in self.moments])
        variances = torch.stack([variance for _, _, variance in self.moments])
        mean = (share * means).sum(0)
        square = (share * (variances + (means - mean) ** 2)).sum(0)
        by_group = mean.unflatten(1, (groups, -1))
        center = by_group.mean(2, keepdim=True)
        spread = square.unflatten(1, (groups, -1)) + (by_group - center) ** 2
        return center[..., 0], spread.mean(2)


def affine_of(norm: Any, source: Map, shop: Workshop) -> tuple[Tensor, Tensor]:
    """GroupNorm as scale and shift per channel of each image, (N, C, 1, 1), float32."""
    weight, bias = weights_of(norm, source.data, shop.device)
    assert bias is not None
    mean, variance = source.statistics(norm.num_groups)
    each = norm.num_channels // norm.num_groups
    inverse = (variance + norm.eps).rsqrt().repeat_interleave(each, dim=1)
    middle = mean.repeat_interleave(each, dim=1)
    scale = inverse * weight.to("cpu").double()
    shift = bias.to("cpu").double() - middle * scale
    scaled, shifted = ((t.float()[..., None, None]).to(shop.device) for t in (scale, shift))
    return scaled, shifted


def normalised(strip: Tensor, affine: tuple[Tensor, Tensor], activate: bool = True) -> Tensor:
    scale, shift = affine
    normal = torch.mul(strip, scale).add_(shift).to(strip.dtype)
    return F.silu(normal, inplace=True) if activate else normal

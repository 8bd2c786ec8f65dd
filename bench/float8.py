"""What FP8 storage saves and what it loses: three denoisers, three ways to make eight bits.

The error is that of one forward: the relative L2 distance of the output to the one of the same
model with its float16 weights, both computed in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..memory import float8
from ..memory.adapters.synthetic import DENOISERS, build_denoiser, weight_bytes
from ..memory.units import format_bytes
from .table import render

_Way = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Float8Row:
    """One denoiser. Bytes of all its weights; errors as parts of one; seconds of encoding."""

    family: str
    layers: int
    before: int
    after: int
    unscaled: float
    scaled: float
    companded: float
    seconds: float


@dataclass(frozen=True)
class Float8Bench:
    """The rows of a run."""

    rows: tuple[Float8Row, ...]

    def text(self) -> str:
        """A table for a person."""
        headers = (
            "shape",
            "float16",
            "stored",
            "cast, no scale",
            "scale per channel",
            "scale and curve",
            "encoding per GB",
        )
        table = render(
            headers,
            [
                (
                    row.family,
                    format_bytes(row.before),
                    format_bytes(row.after),
                    *(f"{100 * error:.2f}%" for error in (row.unscaled, row.scaled, row.companded)),
                    f"{row.seconds / row.before * 1e9:.1f} s",
                )
                for row in self.rows
            ],
        )
        return (
            f"{table}\nError of one forward (relative L2), random weights by fan-in, "
            f"{torch.get_num_threads()} CPU threads. The last way is the one ComfyUI's models get."
        )

    def to_dict(self) -> dict[str, Any]:
        """The rows as plain JSON values."""
        return {"rows": [asdict(row) for row in self.rows]}


def bench_float8() -> Float8Bench:
    """Measure all families; about a minute of one CPU, and 2 GB of RAM."""
    return Float8Bench(tuple(measure(family) for family in DENOISERS))


def measure(family: str) -> Float8Row:
    """The row of one family, a key of ``DENOISERS``."""
    model, inputs = build_denoiser(family)
    before = weight_bytes(model)
    exact = {layer: layer.weight.detach() for layer in _layers(model)}
    model.float()
    reference = _forward(model, inputs)
    stored = 0
    start = time.perf_counter()
    for weight in exact.values():
        stored += _encoded(weight).nbytes
    seconds = time.perf_counter() - start
    errors = []
    for way in (_unscaled, _scaled, _companded):
        for layer, weight in exact.items():
            layer.weight.data = way(weight).float()
        errors.append(float8.relative_error(_forward(model, inputs), reference))
    after = before - sum(weight.nbytes for weight in exact.values()) + stored
    return Float8Row(family, len(exact), before, after, *errors, seconds)


def _layers(model: torch.nn.Module) -> Iterator[Any]:
    """The layers that ComfyUI's model of this family has in FP8."""
    for name, layer in model.named_modules():
        if (
            isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))
            and float8.in_a_block(name)
            and layer.weight.numel() >= float8.LEAST
        ):
            yield layer


@torch.no_grad()
def _forward(model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    output = model(**inputs, return_dict=False)[0]
    assert isinstance(output, torch.Tensor)
    return output


def _unscaled(weight: torch.Tensor) -> torch.Tensor:
    return weight.to(float8.CODES).to(weight.dtype)


def _scaled(weight: torch.Tensor) -> torch.Tensor:
    rows = weight.float().flatten(1)
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / float8.LARGEST
    return (rows.div(scale).to(float8.CODES).float() * scale).view(weight.shape).to(weight.dtype)


def _companded(weight: torch.Tensor) -> torch.Tensor:
    return _encoded(weight).decode(weight.dtype)


def _encoded(weight: torch.Tensor) -> float8.Encoded:
    encoded = float8.encode(weight)
    assert encoded is not None
    return encoded

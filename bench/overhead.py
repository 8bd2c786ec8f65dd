"""What Optimize Pipeline costs at level none: prompts with it beside stock ComfyUI's.

The timing itself runs inside ComfyUI (``tests/hosts/overhead.py``). Prompts take turns, and each is
compared with the stock prompt beside it, so that a machine that slows down slows both. A third
executor runs stock prompts too: how far stock is from itself is what the machine's noise makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from . import table
from .inside import in_every_comfyui, interval
from .places import Place

LIMIT = 0.01
"""Most that a prompt may take longer, as a part of its time."""
PAIRS = 60
SIZE = 128
STEPS = 4
_KINDS = {"first": "first prompt", "again": "another seed"}


@dataclass(frozen=True)
class Overhead:
    """One kind of prompt in one ComfyUI; ratios are parts of the stock prompt's time.

    Attributes:
        seconds: median of the stock prompts.
        added: median of what a prompt takes longer with Lowtide.
        low, high: bounds of its 95% confidence interval.
        noise: the same median for stock prompts against stock prompts.
    """

    version: str
    kind: str
    clock: str
    pairs: int
    seconds: float
    added: float
    low: float
    high: float
    noise: float

    @property
    def exceeded(self) -> bool:
        """Whether the limit is passed for certain, and not by noise alone."""
        return self.low > LIMIT


@dataclass(frozen=True)
class OverheadBench:
    """All rows, and where they were measured."""

    place: str
    rows: list[Overhead]

    @property
    def exceeded(self) -> bool:
        return any(row.exceeded for row in self.rows)

    def text(self) -> str:
        """A table and how to read it."""
        headers = ("ComfyUI", "prompt", "stock", "Lowtide adds", "95% between", "stock to itself")
        cells = [
            (
                row.version,
                f"{row.kind}, {row.pairs} pairs",
                f"{row.seconds * 1000:.0f} ms",
                f"{_percent(row.added)} ({row.added * row.seconds * 1000:+.1f} ms)",
                f"{_percent(row.low)} and {_percent(row.high)}",
                _percent(row.noise),
            )
            for row in self.rows
        ]
        clock = self.rows[0].clock if self.rows else "wall-clock"
        return (
            f"Optimize Pipeline at level none beside stock ComfyUI, {clock} time on {self.place}, "
            f"medians of pairs\n\n{table.render(headers, cells)}\n\n"
            f"The limit is {LIMIT:.0%} of a prompt's time: "
            f"{'passed' if self.exceeded else 'kept'}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"place": self.place, "limit": LIMIT, "rows": [asdict(row) for row in self.rows]}


def bench(place: Place, *, pairs: int, size: int, steps: int) -> OverheadBench:
    """Time prompts in every ComfyUI found.

    Raises:
        DeviceError: there is no ComfyUI, no checkout's test rig, or it failed there.
    """
    rows = []
    measured = in_every_comfyui("overhead", place, pairs=pairs, size=size, steps=steps)
    for version, found in measured:
        rows += [
            summary(version, label, found["clock"], found[kind]) for kind, label in _KINDS.items()
        ]
    return OverheadBench(place.name, rows)


def summary(version: str, kind: str, clock: str, rounds: Sequence[Mapping[str, float]]) -> Overhead:
    """One row from rounds of ``stock``, ``lowtide`` and ``stock again`` seconds."""
    added = [it["lowtide"] / it["stock"] - 1 for it in rounds]
    noise = [it["stock again"] / it["stock"] - 1 for it in rounds]
    low, high = interval(added)
    return Overhead(
        version,
        kind,
        clock,
        len(rounds),
        median(it["stock"] for it in rounds),
        median(added),
        low,
        high,
        median(noise),
    )


def _percent(part: float) -> str:
    return f"{part:+.2%}"

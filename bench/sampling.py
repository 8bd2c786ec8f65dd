"""What the overlay's samples cost: the thread that takes them, as a part of one core.

The timing itself runs inside ComfyUI (``tests/hosts/sampling.py``), in CPU time of the thread,
which other programs do not lengthen. Where the accelerator is simulated its counters are quicker to
read than a driver's; the rest is the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..memory.adapters.comfy.overlay.pulse import IDLE_SECONDS, RUNNING_SECONDS
from ..memory.highwater import SAMPLE_SECONDS
from . import table
from .inside import in_every_comfyui
from .places import Place

LIMIT = 0.005
"""Most that sampling may take of one core while a prompt runs."""
PAIRS = 200
SIZE = 128
STEPS = 4


@dataclass(frozen=True)
class Sampling:
    """One ComfyUI. CPU seconds; shares are parts of one core.

    Attributes:
        sample: of one sample, with a prompt's models loaded.
        measured: the thread's share while prompts ran, as measured.
        series: share of a run's own series, which the overlay draws.
        state: of one answer to a tab that comes late.
        message: bytes of a sample as it is sent.
    """

    version: str
    sample: float
    measured: float
    series: float
    state: float
    message: int

    @property
    def running(self) -> float:
        """Share of samples at their highest rate."""
        return self.sample / RUNNING_SECONDS

    @property
    def idle(self) -> float:
        """Share of samples while nothing runs."""
        return self.sample / IDLE_SECONDS

    @property
    def exceeded(self) -> bool:
        """Whether the thread takes more than it may."""
        return max(self.running, self.measured) > LIMIT


@dataclass(frozen=True)
class SamplingBench:
    """All rows, and where they were measured."""

    place: str
    rows: list[Sampling]

    @property
    def exceeded(self) -> bool:
        return any(row.exceeded for row in self.rows)

    def text(self) -> str:
        """A table and how to read it."""
        headers = ("ComfyUI", "a sample", "running", "measured", "idle", "a run's series", "state")
        cells = [
            (
                row.version,
                f"{row.sample * 1000:.2f} ms, {row.message} bytes",
                *(f"{share:.2%}" for share in (row.running, row.measured, row.idle, row.series)),
                f"{row.state * 1000:.1f} ms",
            )
            for row in self.rows
        ]
        return (
            f"The overlay's samples, CPU time on {self.place}, parts of one core\n\n"
            f"{table.render(headers, cells)}\n\n"
            f"The limit is {LIMIT:.1%} of a core while a prompt runs: "
            f"{'passed' if self.exceeded else 'kept'}. Without a tab it is 0."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"place": self.place, "limit": LIMIT, "rows": [asdict(row) for row in self.rows]}


def bench(
    place: Place, *, pairs: int = PAIRS, size: int = SIZE, steps: int = STEPS
) -> SamplingBench:
    """Time ``pairs`` samples in every ComfyUI found.

    Raises:
        DeviceError: there is no ComfyUI, no checkout's test rig, or it failed there.
    """
    measured = in_every_comfyui("sampling", place, pairs=pairs, size=size, steps=steps)
    return SamplingBench(place.name, [row_of(version, found) for version, found in measured])


def row_of(version: str, found: Mapping[str, float]) -> Sampling:
    """One ComfyUI's row from what the script measured."""
    return Sampling(
        version=version,
        sample=max(found["empty"], found["loaded"]),
        measured=found["running"],
        series=found["series"] / SAMPLE_SECONDS,
        state=found["state"],
        message=int(found["bytes"]),
    )

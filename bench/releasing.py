"""What giving memory back costs and leaves: stock ComfyUI, POST /free, a naive way, Lowtide.

The measuring runs inside ComfyUI (``tests/hosts/releasing.py``). The ways take turns, and each
prompt is compared with the stock prompt of its round. Every prompt has a text and a seed of its
own, so that each part is needed in each prompt, and follows one of its own way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ..memory.units import MIB
from . import table
from .inside import in_every_comfyui, interval
from .places import Place

STOCK = "stock"
NAIVE = "gc and empty_cache"
ALWAYS = "Lowtide always"
PRESSURE = "Lowtide pressure"
PARTS = ("text encoder", "model", "VAE")
PAIRS = 12
SIZE = 128
STEPS = 4
SHARE_OF_NAIVE = 0.2
"""The most that ``always`` may add, loading weights again included, of what the naive way adds."""
SHARE_OF_STOCK = 0.01
"""The most that ``pressure`` may add where memory is ample, of a prompt's time."""


@dataclass(frozen=True)
class Way:
    """One way in one ComfyUI: seconds and bytes.

    Attributes:
        added: median of what a prompt takes longer than stock's, with a 95% confidence interval
            from ``low`` to ``high``.
        loading: median of what of that goes into loading weights that stock kept on the device.
        freed: by part, the median of the time from the end of the last node that needs it until
            its weights are off the device; ``None`` where they stay.
        allocated, reserved: bytes on the device after a prompt.
    """

    version: str
    name: str
    clock: str
    seconds: float
    added: float
    low: float
    high: float
    loading: float
    freed: dict[str, float | None]
    allocated: int | None
    reserved: int | None


@dataclass(frozen=True)
class Releasing:
    """All rows, and where they were measured."""

    place: str
    rows: list[Way]

    @property
    def exceeded(self) -> bool:
        return bool(self.failures())

    def failures(self) -> list[str]:
        """What the figures say against the limits, noise aside."""
        found = []
        for version in dict.fromkeys(row.version for row in self.rows):
            rows = {row.name: row for row in self.rows if row.version == version}
            naive, always = rows[NAIVE], rows[ALWAYS]
            if always.added > SHARE_OF_NAIVE * naive.added:
                found.append(f"{version}: always adds more than a fifth of what the naive way adds")
            if rows[PRESSURE].low > SHARE_OF_STOCK * rows[STOCK].seconds:
                found.append(f"{version}: pressure adds more than a hundredth of a prompt")
            if always.allocated or always.reserved:
                found.append(f"{version}: always leaves bytes on the device")
        return found

    def text(self) -> str:
        """A table and how to read it."""
        headers = ["ComfyUI, way", "prompt, ms", "added, ms", "95% between", "of it loading again"]
        headers += [f"{part} free after, ms" for part in PARTS]
        headers += ["left allocated / reserved, MB"]
        cells = [
            [
                f"{row.version}, {row.name}",
                _ms(row.seconds),
                "" if row.name == STOCK else _ms(row.added, "+"),
                "" if row.name == STOCK else f"{_ms(row.low, '+')} and {_ms(row.high, '+')}",
                "" if row.name == STOCK else _ms(row.loading, "+"),
                *("stays" if row.freed[part] is None else _ms(row.freed[part]) for part in PARTS),
                f"{_mb(row.allocated)} / {_mb(row.reserved)}",
            ]
            for row in self.rows
        ]
        failures = self.failures()
        clock = self.rows[0].clock if self.rows else "wall-clock"
        return (
            f"Prompts and the memory they leave, {clock} time on {self.place}, medians\n\n"
            f"{table.render(headers, cells)}\n\n"
            "POST /free works once the prompt is over, and drops ComfyUI's cached results too.\n"
            "Free after: wall-clock time from the end of the last node that needs the part.\n"
            "What leaves the device is loaded again for the next prompt; the naive way frees "
            "nothing that a model holds.\n"
            f"Limits: always adds at most {SHARE_OF_NAIVE:.0%} of what the naive way adds, and "
            f"leaves nothing; pressure adds at most {SHARE_OF_STOCK:.0%} of a prompt: "
            f"{'; '.join(failures) or 'kept'}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        rows = [asdict(row) for row in self.rows]
        return {"place": self.place, "rows": rows, "failures": self.failures()}


def bench(place: Place, *, pairs: int, size: int, steps: int) -> Releasing:
    """Time prompts in every ComfyUI found.

    Raises:
        DeviceError: there is no ComfyUI, no checkout's test rig, or it failed there.
    """
    rows: list[Way] = []
    measured = in_every_comfyui("releasing", place, pairs=pairs, size=size, steps=steps)
    for version, found in measured:
        rows += summary(version, found)
    return Releasing(place.name, rows)


def summary(version: str, found: Mapping[str, Any]) -> list[Way]:
    """One row for each way, from what the script printed."""
    rows = []
    for name, left in found["left"].items():
        added = [it[name] - it[STOCK] for it in found["rounds"]]
        loading = [it[name] - it[STOCK] for it in found["loading"]]
        low, high = interval(added)
        rows.append(
            Way(
                version,
                name,
                found["clock"],
                median(it[name] for it in found["rounds"]),
                median(added),
                low,
                high,
                median(loading),
                {part: _median([it.get(part) for it in found["freed"][name]]) for part in PARTS},
                left["allocated"],
                left["reserved"],
            )
        )
    return rows


def _median(values: Sequence[float | None]) -> float | None:
    """``None`` if any is: a part that sometimes stays is one that stays."""
    found = [value for value in values if value is not None]
    return median(found) if found and len(found) == len(values) else None


def _ms(seconds: float | None, sign: str = "") -> str:
    return table.UNKNOWN if seconds is None else format(seconds * 1000, f"{sign}.0f")


def _mb(size: int | None) -> str:
    return table.UNKNOWN if size is None else f"{size / MIB:.1f}"

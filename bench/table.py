"""Plain tables for terminals and READMEs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..memory.units import GIB, MIB
from .measure import Row

UNKNOWN = "-"
_STAGES = ("text_encoding", "denoising", "decoding")


def render(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    body = [list(row) for row in rows]
    widths = [max(len(line[i]) for line in [list(headers), *body]) for i in range(len(headers))]
    lines = [_line(headers, widths), _rule(widths), *(_line(row, widths) for row in body)]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"


def _rule(widths: Sequence[int]) -> str:
    rest = "".join(f"|{'-' * (width + 1)}:" for width in widths[1:])
    return f"|{'-' * (widths[0] + 2)}{rest}|"


class Unit:
    """One unit for a whole table: MB of 1024**2 bytes, or GB of 1024**3 where they fit better."""

    def __init__(self, rows: Iterable[Row]) -> None:
        largest = max((row.peak_reserved or row.peak_host or 0 for row in rows), default=0)
        self.name, self._size, self._digits = (
            ("GB", GIB, 2) if largest >= 2 * GIB else ("MB", MIB, 1)
        )

    def in_unit(self, count: int | None) -> float:
        """``count`` bytes as a number in the unit; unknown draws as nothing."""
        return (count or 0) / self._size

    def of(self, count: int | None) -> str:
        """``count`` bytes in the unit; a dash if unknown, a plain 0 for nothing."""
        if count is None:
            return UNKNOWN
        return f"{count / self._size:.{self._digits}f}" if count else "0"

    def pair(self, one: int | None, other: int | None) -> str:
        """Two amounts, for example allocated and reserved."""
        return UNKNOWN if one is None and other is None else f"{self.of(one)} / {self.of(other)}"


def difference(value: float | None) -> str:
    """A difference of images: 0 only if it is 0 to the last bit."""
    if value is None:
        return UNKNOWN
    return "0" if value == 0 else f"{value:.2g}"


def ratio(value: float | None) -> str:
    """A time ratio with two decimals."""
    return UNKNOWN if value is None else f"{value:.2f}"


def level_table(rows: Sequence[Row], targets: dict[str, float]) -> str:
    """The levels' table. ``targets``: published peaks in GB by level, shown where there are any."""
    unit = Unit(rows)
    on_cpu = all(row.peak_allocated is None for row in rows) and any(row.peak_host for row in rows)
    stages = [stage for stage in _STAGES if any(row.stages for row in rows)]
    headers = [
        "level",
        f"peak process RAM, {unit.name}" if on_cpu else f"peak allocated, {unit.name}",
        "peak reserved",
        "to device",
        "from device",
        "time ratio",
        "left allocated / reserved",
        "difference",
        *(stage.replace("_", " ") for stage in stages),
    ]
    if targets:
        headers.append("to beat, GB (GPU, 30 steps)")
    lines = []
    for row in rows:
        line = [
            row.name,
            unit.of(row.peak_host if on_cpu else row.peak_allocated),
            unit.of(row.peak_reserved),
            unit.of(row.h2d),
            unit.of(row.d2h),
            ratio(row.ratio),
            unit.pair(row.left_allocated, row.left_reserved),
            difference(row.difference),
            *(unit.of(row.stages.get(stage)) for stage in stages),
        ]
        if targets:
            line.append(f"{targets[row.name]:.1f}" if row.name in targets else UNKNOWN)
        lines.append(line)
    return render(headers, lines)


def remarks(rows: Sequence[Row]) -> list[str]:
    """What the table has no column for: failures, and set-ups that needed more than the run."""
    unit = Unit(rows)
    found = [f"{row.name}: {row.error}" for row in rows if row.error]
    for row in rows:
        if (row.setup_peak or 0) > (row.peak_allocated or 0) and not row.error:
            found.append(
                f"{row.name}: setting up peaked at {unit.of(row.setup_peak)} {unit.name}, "
                f"above the run itself"
            )
    return found

"""The table as a picture: peaks of every level side by side."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from .measure import Row
from .table import Unit, difference

WITHOUT_MATPLOTLIB = "No chart: matplotlib is not installed (pip install matplotlib)."


def write_chart(rows: Sequence[Row], title: str, path: Path) -> bool:
    """Draw peak allocated and reserved per row as PNG; ``False`` where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    drawn = [row for row in rows if row.peak_allocated is not None]
    unit = Unit(drawn)
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(drawn))
    for offset, label, colour, values in (
        (-0.2, "peak reserved", "#b9d3e6", [row.peak_reserved for row in drawn]),
        (0.2, "peak allocated", "#1f6f9f", [row.peak_allocated for row in drawn]),
    ):
        bars = axes.bar(
            [place + offset for place in places],
            [unit.in_unit(value) for value in values],
            width=0.38,
            label=label,
            color=colour,
        )
        axes.bar_label(bars, labels=[unit.of(value) for value in values], fontsize=8, padding=2)
    axes.set_xticks(
        list(places),
        [f"{row.name}\ndifference {difference(row.difference)}" for row in drawn],
        fontsize=9,
    )
    axes.set_ylabel(f"{unit.name} on the device")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    return True

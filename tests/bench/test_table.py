"""The tables: aligned, in one unit, and honest about what is not known."""

from __future__ import annotations

from lowtide.bench.measure import Row
from lowtide.bench.table import Unit, difference, level_table, ratio, remarks, render
from lowtide.memory.units import GIB, MIB


def row(name: str = "none", **figures: object) -> Row:
    return Row(name, **figures)  # type: ignore[arg-type]


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_columns_are_aligned_and_valid_markdown() -> None:
    table = render(["level", "MB"], [["none", "1.0"], ["balanced", "100.5"]])
    assert table.splitlines() == [
        "| level    |    MB |",
        "|----------|------:|",
        "| none     |   1.0 |",
        "| balanced | 100.5 |",
    ]


def test_one_unit_for_the_table_chosen_by_the_largest_figure() -> None:
    small = Unit([row(peak_reserved=450 * MIB)])
    assert (small.name, small.of(277 * MIB), small.of(0), small.of(None)) == (
        "MB",
        "277.0",
        "0",
        "-",
    )
    large = Unit([row(peak_reserved=450 * MIB), row(peak_reserved=13 * GIB)])
    assert (large.name, large.of(450 * MIB)) == ("GB", "0.44")
    assert large.pair(0, None) == "0 / -"
    assert large.pair(None, None) == "-"


def test_a_difference_is_0_only_to_the_last_bit() -> None:
    assert difference(0.0) == "0"
    assert difference(1e-9) == "1e-09"
    assert difference(0.1834) == "0.18"
    assert difference(None) == "-"
    assert ratio(1.234) == "1.23"
    assert ratio(None) == "-"


def test_the_level_table_has_stages_and_what_is_to_be_beaten() -> None:
    rows = [
        row(
            "none",
            peak_allocated=12 * GIB,
            peak_reserved=13 * GIB,
            h2d=0,
            left_allocated=0,
            left_reserved=0,
            difference=0.0,
            ratio=1.0,
            stages={"denoising": 8 * GIB},
        ),
        row("custom", error="out of memory"),
    ]
    head, _, none, custom = cells(level_table(rows, {"none": 12.5}))
    found = dict(zip(head, none, strict=True))
    assert found["peak allocated, GB"] == "12.00"
    assert found["to device"] == "0"
    assert found["from device"] == "-"
    assert found["left allocated / reserved"] == "0 / 0"
    assert found["denoising"] == "8.00"
    assert found["decoding"] == "-"
    assert found["to beat, GB (GPU, 30 steps)"] == "12.5"
    assert set(custom[1:]) == {"-"}
    assert not any("to beat" in cell for cell in cells(level_table(rows, {}))[0])


def test_the_cpu_shows_the_process_instead_of_a_device() -> None:
    table = cells(level_table([row(peak_host=300 * MIB)], {}))
    assert table[0][1] == "peak process RAM, MB"
    assert table[2][1] == "300.0"


def test_failures_and_costly_set_ups_are_told_below_the_table() -> None:
    rows = [
        row("none", peak_allocated=5 * MIB, setup_peak=5 * MIB),
        row("ultra", peak_allocated=1 * MIB, setup_peak=3 * MIB),
        row("balanced", error="out of memory: tried to allocate"),
    ]
    told = remarks(rows)
    assert told[0] == "balanced: out of memory: tried to allocate"
    assert told[1] == "ultra: setting up peaked at 3.0 MB, above the run itself"
    assert len(told) == 2

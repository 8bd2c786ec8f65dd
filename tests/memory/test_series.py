"""A series keeps its peaks, whatever its length, in a bounded number of rows."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from lowtide.memory.series import Series

ROWS = st.lists(st.tuples(st.integers(0, 99) | st.none(), st.integers(0, 99)), max_size=300)


@given(ROWS, st.integers(2, 20))
def test_any_length_fits_and_no_peak_is_lost(readings: list[tuple[int, int]], most: int) -> None:
    series = Series(most)
    for at, (allocated, used) in enumerate(readings):
        series.add((float(at), allocated, None, used))
        rows = series.rows()
        seen = [it for it, _ in readings[: at + 1] if it is not None]
        assert len(rows) <= most
        assert max((row[1] for row in rows if row[1] is not None), default=None) == max(
            seen, default=None
        )
        assert max(row[3] for row in rows) == max(it for _, it in readings[: at + 1])
    times = [row[0] for row in series.rows()]
    assert times == sorted(times)
    assert times[:1] == ([0.0] if readings else [])


def test_few_readings_are_kept_as_they_are() -> None:
    series = Series(4)
    given = [(float(at), at, at + 1, None) for at in range(3)]
    for row in given:
        series.add(row)
    assert series.rows() == given


def test_rows_of_a_full_series_are_evenly_apart() -> None:
    series = Series(8)
    for at in range(1000):
        series.add((float(at), 1, 1, 1))
    times = [row[0] for row in series.rows()]
    steps = {later - one for one, later in itertools.pairwise(times)}
    assert len(steps) == 1 and 4 <= len(times) <= 8

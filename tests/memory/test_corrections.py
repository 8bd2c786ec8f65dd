"""What runs teach: corrections, margins, and which level ran out of memory at which size."""

from __future__ import annotations

import math

import pytest
from lowtide.memory import corrections
from lowtide.memory.corrections import correction, grown, margin, verdict
from lowtide.memory.history_rows import FAILED, FITS, OUT_OF_MEMORY, Key, Row
from lowtide.memory.units import GIB


def row(ratio: float = 1.0, **more: object) -> Row:
    size = int(more.pop("size", 1))
    values = {"predicted": 1000, "measured": round(1000 * ratio), **more}
    stage = str(values.pop("stage", "denoising"))
    return Row(Key("gpu", "model", "shape", "plan", size), stage, "none", 0.0, **values)


def test_nothing_known_corrects_nothing() -> None:
    assert correction([], []) == 1.0
    assert margin([], [], 0.05) == 0.05


def test_more_runs_are_believed_more() -> None:
    found = [correction([row(2.0)] * n, []) for n in (1, 2, 5, 20)]
    assert found == sorted(found) and 1.2 < found[0] < 1.35
    assert math.isclose(found[1], math.sqrt(2.0)), "two runs are believed half, in logarithms"
    assert 1.85 < found[-1] < 2.0


def test_one_odd_run_of_many_changes_little() -> None:
    steady = [row(1.1)] * 9
    assert abs(correction([row(6.0), *steady], []) - correction([row(1.1), *steady], [])) < 0.001


def test_other_shapes_of_the_model_stand_in_until_there_are_runs() -> None:
    like = [row(1.5)] * 20
    assert 1.4 < correction([], like) < 1.5
    once = correction([row(0.9)], like)
    assert 1.1 < once < 1.45, "one run of its own is believed a third"
    assert correction([row(0.9)] * 20, like) < 0.96


def test_half_and_double_are_equally_far_off() -> None:
    assert math.isclose(correction([row(0.5)] * 4, []) * correction([row(2.0)] * 4, []), 1.0)


def test_a_correction_has_a_limit() -> None:
    assert math.isclose(correction([row(900.0)] * 20, []), corrections.LIMIT)
    assert math.isclose(correction([row(0.001)] * 20, []), 1 / corrections.LIMIT)


@pytest.mark.parametrize(
    "change",
    [{"outcome": OUT_OF_MEMORY}, {"outcome": FAILED}, {"predicted": None}, {"measured": None},
     {"predicted": 0}, {"measured": 0}, {"measured": -5}],
)  # fmt: skip
def test_only_whole_runs_with_both_figures_count(change: dict[str, object]) -> None:
    assert correction([row(2.0, **change)] * 5, []) == 1.0


def test_time_has_a_correction_of_its_own() -> None:
    rows = [row(1.0, seconds=3.0, predicted_seconds=1.0)] * 20
    assert correction(rows, [], corrections.of_seconds) > 2.6
    assert correction(rows, []) == 1.0


def test_a_steady_key_needs_little_margin_and_an_unsteady_one_much() -> None:
    steady, unsteady = [row(1.1)] * 20, [row(1.0), row(1.4)] * 10
    assert corrections.LEAST_MARGIN <= margin(steady, [], 0.05) < 0.03
    assert 0.15 < margin(unsteady, [], 0.05) < 0.3
    assert margin(steady[:1], [], 0.10) > 0.06, "one run is no proof of steadiness"
    corrected = correction(unsteady, []) * (1 + margin(unsteady, [], 0.05))
    assert corrected > 1.35, "what fits with the margin holds the higher of the two"


def test_a_margin_leaves_out_one_odd_run_in_ten() -> None:
    rows = [row(3.0), *[row(1.0)] * 10]
    assert margin(rows, [], 0.05) < 0.05
    assert margin([row(3.0), row(3.0), *rows], [], 0.05) > 0.5


def test_a_level_that_ran_out_is_not_tried_at_that_size_or_larger() -> None:
    rows = [row(outcome=OUT_OF_MEMORY, size=100, free=8 * GIB)]
    assert verdict(rows, 100, 8 * GIB) == OUT_OF_MEMORY
    assert verdict(rows, 400, 8 * GIB) == OUT_OF_MEMORY
    assert verdict(rows, 99, 8 * GIB) is None


def test_until_clearly_more_memory_is_free() -> None:
    rows = [row(outcome=OUT_OF_MEMORY, size=100, free=8 * GIB)]
    assert verdict(rows, 100, 8 * GIB + (1 << 20)) == OUT_OF_MEMORY
    assert verdict(rows, 100, 9 * GIB) is None
    assert verdict(rows, 100, None) == OUT_OF_MEMORY, "not known to have grown"
    assert verdict([row(outcome=OUT_OF_MEMORY, size=100)], 100, 9 * GIB) == OUT_OF_MEMORY
    assert not grown(9 * GIB, None) and not grown(None, 8 * GIB) and grown(9 * GIB, 8 * GIB)


def test_the_latest_run_that_speaks_for_the_size_counts() -> None:
    fits, out = row(outcome=FITS, size=100), row(outcome=OUT_OF_MEMORY, size=100)
    assert verdict([fits, out], 100, None) == FITS
    assert verdict([out, fits], 100, None) == OUT_OF_MEMORY
    small = row(outcome=FITS, size=50)
    assert verdict([small, out], 100, None) == OUT_OF_MEMORY, "a small image proves nothing"
    assert verdict([small, out], 50, None) == FITS
    assert verdict([row(outcome=FAILED, size=100)], 100, None) is None


def test_a_run_that_fitted_says_nothing_where_less_is_free() -> None:
    assert verdict([row(outcome=FITS, size=100, free=8 * GIB)], 100, 6 * GIB) is None
    assert verdict([row(outcome=FITS, size=100, free=8 * GIB)], 100, 8 * GIB) == FITS


def test_one_stage_that_runs_out_is_enough() -> None:
    rows = [row(size=100), row(size=100, stage="decoding", outcome=OUT_OF_MEMORY)]
    assert verdict(rows, 100, None) == OUT_OF_MEMORY

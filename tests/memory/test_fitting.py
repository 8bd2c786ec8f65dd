"""The fastest plan that fits, as past runs correct it."""

from __future__ import annotations

import pytest
from lowtide.memory.errors import ConfigError
from lowtide.memory.fitting import Prediction, Stage, fastest_that_fits
from lowtide.memory.history import History, Key, Row
from lowtide.memory.history_rows import OUT_OF_MEMORY
from lowtide.memory.units import GIB

LEVELS = {"none": (10, 5.0), "balanced": (7, 6.0), "aggressive": (5, 8.0), "ultra": (3, 12.0)}


def key(level: str, size: int = 100) -> Key:
    return Key("gpu", "SDXL", f"shape {size}", level, size)


def plans(size: int = 100, times: bool = True) -> list[Prediction]:
    return [
        Prediction(
            level,
            (
                Stage(key(level, size), "text_encoding", GIB, 0.5 if times else None),
                Stage(key(level, size), "denoising", peak * GIB, seconds if times else None),
            ),
        )
        for level, (peak, seconds) in LEVELS.items()
    ]


def history(*rows: Row) -> History:
    found = History(None)
    found.add(rows)
    return found


def row(level: str, **more: object) -> Row:
    values = {"predicted": 1000, "measured": 1000, **more}
    size = int(values.pop("size", 100))
    stage = str(values.pop("stage", "denoising"))
    return Row(key(level, size), stage, level, 0.0, **values)


@pytest.mark.parametrize(
    ("free", "level"),
    [(24, "none"), (10.5, "none"), (10.4, "balanced"), (7.4, "balanced"), (6, "aggressive"),
     (4, "ultra"), (3.2, "ultra")],
)  # fmt: skip
def test_the_fastest_that_fits_with_its_margin(free: float, level: str) -> None:
    choice = fastest_that_fits(plans(), int(free * GIB))
    assert choice.fits and choice.prediction.level == level
    assert choice.peak == LEVELS[level][0] * GIB and choice.needed == int(choice.peak * 1.05)
    assert choice.seconds == LEVELS[level][1] + 0.5
    assert choice.reason.startswith(f"{level} is the fastest plan that fits: {LEVELS[level][0]}.00")


def test_the_order_does_not_matter_where_times_are_known_and_decides_where_not() -> None:
    assert fastest_that_fits(plans()[::-1], 24 * GIB).prediction.level == "none"
    assert fastest_that_fits(plans(times=False), 24 * GIB).prediction.level == "none"
    assert fastest_that_fits(plans(times=False)[::-1], 24 * GIB).prediction.level == "ultra"
    assert fastest_that_fits(plans(times=False), 24 * GIB).seconds is None


def test_where_nothing_fits_the_smallest_is_named_with_what_is_missing() -> None:
    choice = fastest_that_fits(plans(), 2 * GIB)
    assert not choice.fits and choice.prediction.level == "ultra"
    assert "3.15 GB with its margin, and 2.00 GB are there to use, 1.15 GB" in choice.reason


def test_what_was_measured_corrects_the_peaks() -> None:
    more = history(*[row("none", measured=1300)] * 30)
    choice = fastest_that_fits(plans(), int(10.6 * GIB), more)
    assert choice.prediction.level == "balanced"
    less = history(*[row("none", measured=700)] * 30)
    choice = fastest_that_fits(plans(), int(8.5 * GIB), less)
    assert choice.prediction.level == "none"
    assert 7 * GIB < choice.peak < int(7.5 * GIB)
    assert choice.needed < choice.peak * 1.05, "steady runs need less margin"


def test_what_was_measured_corrects_the_times() -> None:
    slow = [row("none", predicted_seconds=1.0, seconds=3.0)] * 30
    usual = [row("balanced", predicted_seconds=1.0, seconds=1.0)] * 30
    assert fastest_that_fits(plans(), 24 * GIB, history(*slow)).prediction.level == "none", (
        "all plans of the model are expected to be as slow"
    )
    choice = fastest_that_fits(plans(), 24 * GIB, history(*slow, *usual))
    assert choice.prediction.level == "balanced" and 6.5 <= (choice.seconds or 0) < 8


def test_a_level_that_ran_out_is_passed_over_at_this_size_and_larger() -> None:
    ran_out = history(row("none", outcome=OUT_OF_MEMORY, free=11 * GIB))
    choice = fastest_that_fits(plans(), 11 * GIB, ran_out)
    assert choice.prediction.level == "balanced"
    assert "none ran out of memory at this size before" in choice.reason
    assert fastest_that_fits(plans(200), 11 * GIB, ran_out).prediction.level == "balanced"
    assert fastest_that_fits(plans(50), 11 * GIB, ran_out).prediction.level == "none"
    assert fastest_that_fits(plans(), 12 * GIB, ran_out).prediction.level == "none"


def test_where_all_ran_out_that_is_said() -> None:
    ran_out = history(*[row(level, outcome=OUT_OF_MEMORY) for level in LEVELS])
    choice = fastest_that_fits(plans(), 24 * GIB, ran_out)
    assert not choice.fits and "ran out of memory at this size before" in choice.reason


def test_a_run_that_fitted_needs_no_margin() -> None:
    free = int(10.2 * GIB)
    assert fastest_that_fits(plans(), free).prediction.level == "balanced"
    rows = [row("none", free=free, stage=stage) for stage in ("text_encoding", "denoising")]
    assert fastest_that_fits(plans(), free, history(*rows)).prediction.level == "none"
    assert fastest_that_fits(plans(), free, history(rows[1])).prediction.level == "balanced"
    assert fastest_that_fits(plans(), int(9.9 * GIB), history(*rows)).prediction.level != "none"


def test_no_plan_is_no_choice() -> None:
    for none in ([], [Prediction("none", ())]):
        with pytest.raises(ConfigError, match="no plan to choose from"):
            fastest_that_fits(none, GIB)

"""A configuration settled by predictions: what fits, what ran out, and what it costs to know."""

from __future__ import annotations

from pathlib import Path

import pytest
from lowtide.memory import foresight, learning
from lowtide.memory.errors import BudgetError
from lowtide.memory.fitting import Prediction, Stage
from lowtide.memory.foresight import Foreseen, TooSlow, Unpredicted, settle
from lowtide.memory.history_rows import FITS, OUT_OF_MEMORY, Key, Row
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.run_key import plan_name
from lowtide.memory.units import GIB, parse_bytes

DENOISE = {"none": 10.0, "balanced": 7.0, "aggressive": 3.0, "ultra": 2.0}
DECODE = {None: 9.0, 512: 4.0, 256: 1.0, 128: 0.5}
SECONDS = {"none": 5.0, "balanced": 6.0, "aggressive": 12.0, "ultra": 9.0}
SIZE = (1024, 1024)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWTIDE_HOME", str(tmp_path))
    monkeypatch.delenv("LOWTIDE_HISTORY", raising=False)


def key(config: MemoryOptimizationConfig) -> Key:
    return Key("gpu", "SDXL", "1x1024x1024", plan_name(config), 1024 * 1024)


class Model:
    """Foresees the table above, and notes what it was asked."""

    def __init__(self, slow: tuple[int | None, ...] = (), margin: float = 0.0) -> None:
        self.slow = slow
        self.margin = margin
        self.asked: list[str] = []

    def __call__(self, config: MemoryOptimizationConfig) -> Foreseen:
        tile = config.tile_for(*SIZE) if config.enable_vae_tiling else None
        if tile in self.slow:
            raise TooSlow("as planned")
        self.asked.append(plan_name(config))
        name = config.level.value
        stages = (
            Stage(key(config), "denoising", int(DENOISE[name] * GIB), SECONDS[name], self.margin),
            Stage(key(config), "decoding", int(DECODE[tile] * GIB), 0.5, self.margin),
        )
        return Foreseen(config, Prediction(name, stages))


def fastest(**more: object) -> MemoryOptimizationConfig:
    return MemoryOptimizationConfig.from_level("ultra", requested_level="fastest", **more)


def row(config: MemoryOptimizationConfig, outcome: str, **more: object) -> Row:
    return Row(key(config), "denoising", config.level.value, 1.0, outcome, **more)


@pytest.mark.parametrize(
    ("free", "plan"),
    [(24, "none"), (10, "none"), (9.9, "balanced"), (7, "balanced"), (6.9, "ultra"),
     (2, "ultra")],
)  # fmt: skip
def test_the_fastest_level_that_fits_what_is_free(free: float, plan: str) -> None:
    found = settle(fastest(), Model(), free=int(free * GIB), size=SIZE)
    assert found.choice.fits and plan_name(found.config) == plan
    assert found.limit == int(free * GIB)
    assert found.config.requested_level.value == "fastest"
    assert f"{plan} is the fastest plan that fits" in found.note()
    assert f"{free:.2f} GB to use (predicted in " in found.note()


def test_what_is_slower_than_what_fits_is_not_even_predicted() -> None:
    for free, asked in ((24, 1), (8, 2)):
        model = Model()
        settle(fastest(), model, free=free * GIB, size=SIZE)
        assert len(model.asked) == asked, model.asked


def test_smaller_tiles_are_tried_where_only_the_decode_is_too_large(monkeypatch) -> None:
    monkeypatch.setitem(DENOISE, "none", 3.0)
    for free, tile in ((8, 512), (3.9, 256)):
        found = settle(fastest(), Model(), free=int(free * GIB), size=SIZE)
        assert (found.config.level.value, found.config.vae_tile_size) == ("none", tile)
        assert f"VAE tiles of {tile} pixels" in found.note()
    model = Model()
    settle(fastest(), model, free=2 * GIB, size=SIZE)
    assert not any(plan.startswith("none, ") for plan in model.asked), "denoising is too large"


def test_tiles_that_take_too_long_to_predict_are_left_for_later(monkeypatch) -> None:
    monkeypatch.setitem(DENOISE, "none", 3.0)
    found = settle(fastest(), Model(slow=(256,)), free=8 * GIB, size=SIZE)
    assert found.left_out == ()
    model = Model(slow=(512,))
    with pytest.raises(TooSlow):  # BALANCED's own tiles
        settle(fastest(), model, free=8 * GIB, size=SIZE)


def test_a_budget_is_a_limit_of_its_own() -> None:
    by_hand = MemoryOptimizationConfig.from_level("balanced", budget_bytes=24 * GIB)
    found = settle(by_hand, Model(), free=1 * GIB, size=SIZE)
    assert plan_name(found.config).startswith("balanced"), "a level by name is not weakened"
    assert found.limit == 24 * GIB, "nor does what is free change what was asked for"
    found = settle(fastest(budget_bytes=24 * GIB), Model(), free=8 * GIB, size=SIZE)
    assert (found.limit, found.config.level.value) == (8 * GIB, "balanced")
    found = settle(fastest(budget_bytes=3 * GIB), Model(), free=8 * GIB, size=SIZE)
    assert (found.limit, found.config.level.value) == (3 * GIB, "ultra")
    assert found.config.budget_bytes == 3 * GIB


def test_a_budget_nothing_keeps_names_the_smallest_and_that_one_does() -> None:
    asked = fastest(budget_bytes=GIB)
    with pytest.raises(BudgetError, match="1024 x 1024 pixels; give ") as caught:
        settle(asked, Model(margin=0.03), free=24 * GIB, size=SIZE)
    named = str(caught.value).partition("give ")[2].partition(" or more")[0]
    enough = asked.replace(budget_bytes=parse_bytes(named))
    assert settle(enough, Model(margin=0.03), free=24 * GIB, size=SIZE).choice.fits


def test_without_a_budget_what_needs_least_is_taken_and_said() -> None:
    found = settle(fastest(), Model(), free=GIB, size=SIZE)
    assert not found.choice.fits and found.config.level.value == "ultra"
    assert "no plan fits" in found.note()


def test_what_is_free_may_be_unknown() -> None:
    with pytest.raises(Unpredicted, match="does not say how much"):
        settle(fastest(), Model(), free=None, size=SIZE)
    assert settle(fastest(budget_bytes=24 * GIB), Model(), free=None, size=SIZE).choice.fits


def test_a_level_that_ran_out_of_memory_is_not_chosen_again_at_that_size() -> None:
    none = next(iter([MemoryOptimizationConfig.from_level("none")]))
    assert settle(fastest(), Model(), free=12 * GIB, size=SIZE).config.level.value == "none"
    learning.history().add([row(none, OUT_OF_MEMORY, free=12 * GIB)])
    found = settle(fastest(), Model(), free=12 * GIB, size=SIZE)
    assert found.config.level.value == "balanced"
    assert "none ran out of memory at this size before" in found.note()
    found = settle(fastest(), Model(), free=16 * GIB, size=SIZE)
    assert found.config.level.value == "none", "clearly more is free now"
    found = settle(fastest(history=False), Model(), free=12 * GIB, size=SIZE)
    assert found.config.level.value == "none", "nothing is to be learnt here"


def test_a_row_on_its_way_to_the_history_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foresight, "_WRITER_SECONDS", 5.0)  # the machine may be busy
    none = MemoryOptimizationConfig.from_level("none")
    learning.log(lambda: [row(none, OUT_OF_MEMORY, free=12 * GIB)])
    assert settle(fastest(), Model(), free=12 * GIB, size=SIZE).config.level.value == "balanced"


def test_what_was_measured_corrects_the_choice_and_its_margin() -> None:
    none = MemoryOptimizationConfig.from_level("none")
    more = row(none, FITS, predicted=1000, measured=1500, free=24 * GIB)
    learning.history().add([more] * 30)
    found = settle(fastest(), Model(), free=12 * GIB, size=SIZE)
    assert found.config.level.value == "balanced"
    model = Model(margin=0.5)
    assert settle(fastest(), model, free=20 * GIB, size=SIZE).config.level.value == "none"


def test_what_is_expected_is_kept_uncorrected_and_said_corrected() -> None:
    config = MemoryOptimizationConfig.from_level("none")
    rows = [row(config, FITS, predicted=1000, measured=1100)] * 40
    learning.history().add(rows)
    told = foresight.expect(Model()(config), foresight.recall(config), whole=True)
    by = learning.history().correction(key(config), "denoising")
    assert by > 1.05
    assert {it.stage: it.predicted for it in told} == {
        "denoising": int(10 * GIB * by),
        "decoding": 9 * GIB,
    }
    assert learning.expected(key(config), "denoising") == (10 * GIB, 5.0)
    assert learning.foretold(key(config), "denoising").corrected == int(10 * GIB * by)
    assert learning.expected(key(config), foresight.WHOLE) == (10 * GIB, 5.5)
    assert learning.foretold(key(config), foresight.WHOLE).corrected == int(10 * GIB * by)


def test_only_what_is_to_be_chosen_is_settled() -> None:
    assert foresight.wants(fastest())
    assert foresight.wants(MemoryOptimizationConfig.from_level("none", budget_bytes=GIB))
    for level in ("none", "ultra"):
        assert not foresight.wants(MemoryOptimizationConfig.from_level(level))
    assert not foresight.wants(MemoryOptimizationConfig.from_level("none", requested_level="auto"))

"""Choosing: the fastest that fits, and what to change where nothing does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lowtide.memory.planner.planner import Limits, Option, choose
from lowtide.memory.planner.predict import Turn
from lowtide.tests.memory.planner.made import MIB, made

SLOW_LINK = SimpleNamespace(h2d_pinned=1e9, h2d_pageable=0.5e9, flops=1e13, bandwidth=1e12)
FAST_LINK = SimpleNamespace(h2d_pinned=1e12, h2d_pageable=1e12, flops=1e12, bandwidth=1e12)
WHOLE = 3 * 64 * MIB + 3 * 2 * MIB


def options(fp8=False, **more):
    turn = Turn("unet", "denoise", made(weight=64 * MIB, flops=10**10), calls=10)
    return [[Option(turn, fp8=fp8, **more)]]


def plan(budget, choices=None, rates=SLOW_LINK, **limits):
    return choose(
        choices or options(), Limits(budget, margin=0, **limits), rates, workspace_factor=0
    )


def test_what_fits_is_resident():
    found = plan(WHOLE)
    assert found.choices[0].how == "resident"
    assert found.prediction.peak_allocated == WHOLE
    assert plan(None).choices[0].how == "resident"


def test_a_byte_less_and_some_is_streamed():
    found = plan(WHOLE - 1)
    assert found.choices[0].how == "partly resident"
    assert found.choices[0].turn.layout.resident_bytes == 64 * MIB
    assert found.prediction.peak_allocated <= WHOLE - 1


def test_a_larger_budget_is_never_slower():
    seconds = [plan(budget * MIB).prediction.seconds for budget in range(71, 260, 9)]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > 2 * seconds[-1]


def test_fp8_only_where_it_is_needed_or_saves_much():
    assert not plan(WHOLE, options(fp8=True)).choices[0].turn.placement.fp8
    tight = plan(170 * MIB, options(fp8=True)).choices[0]
    assert tight.turn.placement.fp8
    assert tight.how == "resident"
    assert tight.changes == {"fp8_storage": True}
    # A link that costs nothing: streaming what is exact is as fast.
    assert not plan(170 * MIB, options(fp8=True), FAST_LINK).choices[0].turn.placement.fp8


def test_the_smallest_budget_is_one_that_does():
    none = plan(60 * MIB)
    assert not none.fits
    assert none.prediction is None
    assert "unet" in none.advice[0]
    assert "smallest budget that would do is" in none.advice[0]
    assert plan(none.smallest_budget).fits
    assert not plan(none.smallest_budget - 2 * MIB).fits


def test_a_margin_is_kept_free():
    kept = choose(options(), Limits(WHOLE, margin=0.05), SLOW_LINK, workspace_factor=0)
    assert kept.prediction.peak_allocated * 1.05 <= WHOLE


def test_a_smaller_tile_where_the_decode_is_too_large():
    big = Turn("vae", "decode", made(weight=MIB, activation=50 * MIB))
    tile = Turn("vae", "decode", made(weight=MIB, activation=5 * MIB, flops=2 * 10**9))
    both = [[Option(big), Option(tile, {"vae_tile_size": 256})]]
    assert plan(200 * MIB, both).choices[0].changes == {}
    assert plan(100 * MIB, both).choices[0].changes == {"vae_tile_size": 256}
    assert "vae_tile_size" in plan(10 * MIB, both).advice[0]


def test_host_and_pinned_memory_are_limits_too():
    pageable = plan(100 * MIB, pinned=10 * MIB)
    assert not pageable.choices[0].turn.placement.pinned
    assert plan(100 * MIB).choices[0].turn.placement.pinned
    assert pageable.prediction.seconds > 1.5 * plan(100 * MIB).prediction.seconds
    short = plan(100 * MIB, host=50 * MIB)
    assert not short.fits
    assert "host memory" in short.advice[0]


def test_a_device_smaller_than_what_is_reserved():
    small = choose(
        options(), Limits(device=100 * MIB), SLOW_LINK, workspace_factor=0, context_bytes=90 * MIB
    )
    assert not small.fits
    assert "context" in small.advice[0]


@pytest.mark.parametrize("budget", [70, 90, 140, 180])
def test_the_prediction_of_a_plan_keeps_to_its_budget(budget):
    found = plan(budget * MIB)
    assert found.fits
    assert found.prediction.peak_allocated <= budget * MIB

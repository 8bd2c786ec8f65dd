"""Components in turns: who stays beside whom, and what that does to peaks and bytes moved."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lowtide.memory.planner.planner import Limits, Option
from lowtide.memory.planner.predict import Turn
from lowtide.memory.planner.turns import choose_turns
from lowtide.tests.memory.planner.made import MIB, made

RATES = SimpleNamespace(h2d_pinned=1e9, h2d_pageable=0.5e9, flops=1e13, bandwidth=1e12)
STEPS = 4


def sizes(*mib):
    """(first encoder, second encoder, denoiser, decoder): MiB of each of three layers."""
    names = ("first", "second", "unet", "vae")
    stages = ("encode", "encode", "denoise", "decode")
    return {
        name: Turn(name, stage, made(weight=size * MIB), calls=STEPS if name == "unet" else 1)
        for name, stage, size in zip(names, stages, mib, strict=True)
    }


def plan(budget, turns, guided=True):
    first, second, unet, vae = turns.values()
    rounds = [first, second] * (2 if guided else 1)
    components = {
        name: [Option(Turn(t.name, t.stage, t.trace, calls=t.calls * rounds.count(t) or t.calls))]
        for name, t in turns.items()
    }
    limits = Limits(budget, margin=0, faithful=True, by_moved=True)
    return choose_turns([*rounds, unet, vae], components, limits, RATES, workspace_factor=0)


TURNS = sizes(4, 8, 20, 2)
BESIDE = 6 * MIB
"""Activations of a call."""


def test_everything_stays_where_it_fits():
    found = plan(3 * (4 + 8 + 20 + 2) * MIB + BESIDE, TURNS)
    assert found.prediction.moved_bytes == 0
    assert found.stays | found.waits == set(TURNS)


def test_each_comes_for_its_turn_where_only_one_fits():
    found = plan(3 * 20 * MIB + BESIDE, TURNS)
    assert all(choice.how == "resident" for choice in found.choices.values())
    assert found.waits == {"first", "second"}
    assert "unet" not in found.stays
    moved = found.prediction.moved_bytes
    assert moved <= 3 * (4 + 8 + 20 + 2) * MIB


def test_encoders_that_do_not_fit_together_come_twice():
    narrow = sizes(8, 8, 8, 2)
    found = plan(3 * 8 * MIB + BESIDE, narrow)
    assert found.fits
    assert not found.waits
    together = plan(2 * 3 * 8 * MIB + BESIDE, narrow)
    assert together.waits == {"first", "second"}
    assert together.prediction.moved_bytes < found.prediction.moved_bytes


def test_without_guidance_no_encoder_waits():
    assert not plan(3 * 20 * MIB + BESIDE, TURNS, guided=False).waits


@pytest.mark.parametrize("budget", range(30, 120, 7))
def test_no_budget_is_broken_and_a_larger_one_never_moves_more(budget):
    found, larger = plan(budget * MIB, TURNS), plan((budget + 7) * MIB, TURNS)
    assert found.prediction.peak_allocated <= budget * MIB
    assert larger.prediction.moved_bytes <= found.prediction.moved_bytes


def test_the_smallest_budget_is_one_that_does():
    none = plan(10 * MIB, TURNS)
    assert not none.fits and none.prediction is None
    assert "unet" in none.advice[0]
    assert plan(none.smallest_budget, TURNS).fits
    assert not plan(none.smallest_budget - 2 * MIB, TURNS).fits


def test_its_json_says_who_stays():
    found = plan(3 * (4 + 8 + 20 + 2) * MIB + BESIDE, TURNS).to_dict()
    assert found["fits"]
    assert found["choices"]["unet"]["stays"] is True

"""Every level and every budget on three model families: what fits, what it makes, what is left."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
from lowtide.tests.hosts.comfyui import Installation, survey
from lowtide.tests.memory.adapters.comfy.hosted import FAMILIES, hosted

LEVELS = ("none", "balanced", "aggressive", "ultra")
SHARES = (0.10, 0.25, 0.50, 0.75, 1.00)
LORAS = (0, 1, 5)
PLACES = ("npu", "cuda", "cpu")
MIB = 1 << 20
PARTS = 6
"""Text encoders, model and VAE are refused one by one, as their turn comes."""

Setting = tuple[str, float | None]
BARE: list[Setting] = [(level, None) for level in LEVELS]
BUDGETS: list[Setting] = [("none", share) for share in SHARES]
# Levels and budgets together. LOWTIDE_TEST_MATRIX=full takes all pairs with all LoRAs everywhere.
BOTH: list[Setting] = [("ultra", 0.10), ("aggressive", 0.25), ("balanced", 0.50)]
FEW: list[Setting] = [("ultra", None), ("none", 0.10), ("none", 0.50)]
FULL = os.environ.get("LOWTIDE_TEST_MATRIX") == "full"

INSTALLATIONS, REFUSED = survey()

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not INSTALLATIONS, reason="; ".join(REFUSED)),
    pytest.mark.parametrize("installation", INSTALLATIONS or [None], ids=str),
]


def _settings(place: str, loras: int) -> list[Setting]:
    """All of them on one device with one LoRA; elsewhere those that differ most."""
    if FULL:
        return [*BARE, *itertools.product(LEVELS, SHARES)]
    if place == "npu":
        return [*BARE, *BUDGETS, *BOTH] if loras == 1 else FEW
    if place == "cuda":
        return FEW[:2] if loras == 5 else []
    return [*FEW, ("balanced", None)] if loras == 1 else []


def _cells() -> list[Any]:
    found = []
    for place, loras in itertools.product(PLACES, LORAS):
        for level, share in _settings(place, loras):
            name = level if share is None else f"{level}-{share:.0%}"
            everywhere = place == "npu" and loras == 1 and (level, share) not in BOTH
            marks = [] if everywhere or FULL else [pytest.mark.long]
            cell = place, level, share, loras
            found.append(pytest.param(*cell, id=f"{place}-{name}-{loras}", marks=marks))
    return found


def check_pictures(prompts: list[dict[str, Any]]) -> None:
    """Bit by bit: latents and images of all prompts."""
    assert len(prompts) == 3
    differences = [(prompt["latent"], prompt["image"]) for prompt in prompts]
    assert differences == [(0.0, 0.0)] * 3, "largest differences of latent and image"


def check_peaks(prompts: list[dict[str, Any]], budget: int | None, place: str) -> None:
    """What the accelerator counted stays under the budget."""
    if budget is None or place == "cpu":
        return
    for number, prompt in enumerate(prompts):
        assert prompt["peak"] <= budget, (
            f"prompt {number} reached {prompt['peak'] / MIB:.2f} MiB in {prompt['op']}, "
            f"over a budget of {budget / MIB:.2f} MiB"
        )


def check_undone(outcome: dict[str, Any]) -> None:
    """The originals are what they were, and the device is empty."""
    assert outcome["changed"] == []
    assert outcome["leftovers"] == []
    assert outcome["left"] == 0


@pytest.mark.parametrize("shape", FAMILIES)
@pytest.mark.parametrize(("place", "level", "share", "loras"), _cells())
def test_cell(
    installation: Installation, place: str, shape: str, level: str, share: float | None, loras: int
) -> None:
    process = hosted(installation, place)
    cell = {"shape": shape, "level": level, "loras": loras}
    outcome = process.ask("matrix", "cell", **cell, share=share)
    check_undone(outcome)
    if "refused" in outcome:
        refusal, named = outcome["refused"], outcome["named"]
        assert share is not None, refusal
        assert named is not None and named > outcome["budget"], refusal
        for _ in range(PARTS):
            # What the message rounded away, and a little more.
            enough = int(named * 1.01) + MIB // 10
            outcome = process.ask("matrix", "named", **cell, budget=enough)
            check_undone(outcome)
            if "refused" not in outcome:
                break
            # Another part, or a longer prompt, needs more than the first one that was refused.
            refusal = f"{refusal}\nand then: {outcome['refused']}"
            assert outcome["named"] > enough, refusal
            named = outcome["named"]
        assert "refused" not in outcome, refusal
    check_pictures(outcome["prompts"])
    check_peaks(outcome["prompts"], outcome["budget"], place)


@pytest.mark.parametrize("shape", FAMILIES)
@pytest.mark.parametrize("place", ["npu", "cuda"])
def test_ultra_computes_with_other_weights_than_stock(
    installation: Installation, place: str, shape: str
) -> None:
    """Or the cells of ultra would compare stock with stock."""
    assert hosted(installation, place).ask("matrix", "fp8_differs", shape=shape) > 0

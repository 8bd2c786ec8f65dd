"""Lowtide Memory Level Selector."""

from __future__ import annotations

from typing import Any

import pytest
from lowtide.memory.errors import BudgetError, ConfigError
from lowtide.memory.levels import SELECTOR, MemoryOptimizationConfig, OptimizationLevel
from lowtide.memory.units import GIB
from lowtide.tests.nodes.shape import check_conventions, inputs, node

NAME = "LowtideMemoryLevelSelector"


def choose(
    level: str = "balanced", budget: float = 0.0, cleanup: str = "pressure"
) -> tuple[MemoryOptimizationConfig, str]:
    return node(NAME)().run(level, budget, cleanup)


def test_inputs_and_outputs_are_those_of_saved_graphs() -> None:
    check_conventions(NAME, "Lowtide Memory Level Selector")
    assert list(inputs(NAME)) == ["level", "budget_gb", "cleanup"]
    assert inputs(NAME) == {
        "level": ["auto", "auto (by VRAM size)", "none", "balanced", "aggressive", "ultra"],
        "budget_gb": "FLOAT",
        "cleanup": ["off", "pressure", "always"],
    }
    assert inputs(NAME, "optional") == {"rescue": ["on", "off", "ask"]}
    assert node(NAME).RETURN_TYPES == ("LOWTIDE_CONFIG", "STRING")


def test_no_budget_is_the_default() -> None:
    assert node(NAME).INPUT_TYPES()["required"]["budget_gb"][1]["default"] == 0.0


@pytest.mark.parametrize("level", ["none", "balanced", "aggressive", "ultra"])
@pytest.mark.parametrize("cleanup", ["off", "pressure", "always"])
def test_each_choice_is_in_the_configuration(accelerator: Any, level: str, cleanup: str) -> None:
    config, text = choose(level, 1.5, cleanup)
    assert (config.level.value, config.cleanup, config.budget_bytes) == (
        level,
        cleanup,
        3 * GIB // 2,
    )
    assert f"Level: {level}" in text and "Budget: 1.50 GB" in text and f"Cleanup: {cleanup}" in text


def test_auto_is_resolved_and_explained(accelerator: Any) -> None:
    accelerator(capacity="7G")
    for name, requested in (("auto", "fastest"), ("auto (by VRAM size)", "auto")):
        config, text = choose(name)
        assert (config.level.value, config.requested_level.value) == ("aggressive", requested)
        assert "7.00 GB, under 8 GB: aggressive" in text


def test_what_cannot_be_chosen_is_refused(accelerator: Any) -> None:
    with pytest.raises(ConfigError, match="unknown level 'extreme'; choose one of: auto, auto "):
        choose("extreme")
    with pytest.raises(ConfigError, match="cleanup"):
        choose(cleanup="sometimes")
    with pytest.raises(ConfigError, match="unknown rescue 'maybe'; choose one of: on, off, ask"):
        node(NAME)().run("none", 0.0, "off", "maybe")
    with pytest.raises(BudgetError, match=r"give at most 8.00 GB"):
        choose(budget=9.0)
    for budget in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="cannot be kept"):
            choose(budget=budget)


def test_it_runs_again_when_the_device_changes_and_not_else(accelerator: Any) -> None:
    changed = node(NAME).IS_CHANGED
    first = changed("auto", 0.0, "off")
    assert changed("auto", 0.0, "off") == first
    accelerator(capacity="5G")
    assert changed("auto", 0.0, "off") != first
    assert isinstance(changed("nonsense", 0.0, "off"), str)


def test_a_graph_saved_with_auto_still_loads_and_the_library_keeps_its_auto(
    accelerator: Any,
) -> None:
    assert "auto" in inputs(NAME)["level"] and SELECTOR["auto"] is OptimizationLevel.FASTEST
    assert list(SELECTOR) == inputs(NAME)["level"]
    accelerator(capacity="7G")
    library = MemoryOptimizationConfig.from_level("auto")
    assert (library.level.value, library.requested_level) == ("aggressive", OptimizationLevel.AUTO)

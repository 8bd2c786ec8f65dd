"""Lowtide Force Cleanup."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from lowtide.memory.errors import ConfigError
from lowtide.memory.units import MIB
from lowtide.tests.memory.tiny import held
from lowtide.tests.nodes.shape import check_conventions, inputs, node

NAME = "LowtideForceCleanup"


def test_inputs_and_outputs_are_those_of_saved_graphs() -> None:
    check_conventions(NAME, "Lowtide Force Cleanup")
    assert inputs(NAME) == {"anything": "*", "target": ["vram", "ram", "both"]}
    assert node(NAME).INPUT_TYPES()["required"]["target"][1]["default"] == "vram"
    assert inputs(NAME, "optional") == {"keep": "STRING"}
    assert node(NAME).RETURN_TYPES == ("*", "STRING", "LOWTIDE_FIGURES")
    assert node(NAME).INPUT_TYPES()["hidden"] == {"unique_id": "UNIQUE_ID"}


def test_it_is_visited_on_every_run_and_keeps_what_is_downstream_cached() -> None:
    assert node(NAME).OUTPUT_NODE is True
    assert not hasattr(node(NAME), "IS_CHANGED")


@pytest.mark.parametrize("target", ["vram", "ram", "both"])
def test_it_passes_anything_through_and_cleans_up(accelerator: Any, target: str) -> None:
    base = held(accelerator)
    lost = torch.zeros(4 * MIB, device=accelerator.device)
    del lost
    assert accelerator.reserved > base[1]
    thing = object()
    answer = node(NAME)().run(thing, target)
    passed, text, receipt = answer["result"]
    assert passed is thing
    assert answer["ui"] == {"text": [text], "receipt": [receipt]}
    assert receipt["freed"] >= 16 * MIB and json.dumps(receipt)
    assert accelerator.reserved == base[1]
    assert text.startswith(f"Released on {accelerator.device}")
    assert "allocator cache" in text


def test_an_unknown_target_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match="choose one of: vram, ram, both"):
        node(NAME)().run(1, "disk")

"""Lowtide VRAM Monitor."""

from __future__ import annotations

from typing import Any

import torch
from lowtide.memory.units import MIB
from lowtide.tests.nodes.shape import check_conventions, inputs, node

NAME = "LowtideVRAMMonitor"


def test_inputs_and_outputs_are_those_of_saved_graphs() -> None:
    check_conventions(NAME, "Lowtide VRAM Monitor")
    assert inputs(NAME) == {"anything": "*"}
    assert node(NAME).RETURN_TYPES[:2] == ("*", "STRING")
    assert len(node(NAME).RETURN_TYPES) == 3
    assert node(NAME).INPUT_TYPES()["hidden"] == {"unique_id": "UNIQUE_ID"}


def test_it_is_visited_on_every_run_and_keeps_what_is_downstream_cached() -> None:
    assert node(NAME).OUTPUT_NODE is True
    assert not hasattr(node(NAME), "IS_CHANGED")


def test_it_passes_anything_through_and_reads(accelerator: Any) -> None:
    thing = torch.zeros(3 * MIB, dtype=torch.uint8, device=accelerator.device)
    answer = node(NAME)().run(thing, "7")
    passed, text, figures = answer["result"]
    assert passed is thing
    assert answer["ui"] == {"text": [text]}
    assert figures["device"] == str(accelerator.device)
    assert figures["allocated"] == accelerator.allocated >= 3 * MIB
    assert f"{accelerator.device}" in text

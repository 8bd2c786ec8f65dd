"""The ids saved graphs refer to, and the wildcard type."""

from __future__ import annotations

import operator

import pytest
from lowtide.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from lowtide.nodes.types import ANY

IDS = {
    "LowtideMemoryLevelSelector",
    "LowtideMemorySettings",
    "LowtideOptimizePipeline",
    "LowtideLoadDiffusersPipeline",
    "LowtideOptimizeDiffusersPipeline",
    "LowtideGenerate",
    "LowtideVRAMMonitor",
    "LowtideFitCheck",
    "LowtideForceCleanup",
}


def test_the_ids_are_those_of_saved_graphs() -> None:
    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS) == IDS


def test_each_id_has_a_class_and_a_title_of_its_own() -> None:
    assert len(set(NODE_CLASS_MAPPINGS.values())) == len(IDS)
    assert len(set(NODE_DISPLAY_NAME_MAPPINGS.values())) == len(IDS)


@pytest.mark.parametrize("other", ["IMAGE", "MODEL", "*", "LOWTIDE_CONFIG", "IMAGE,MASK"])
def test_the_wildcard_differs_from_no_type(other: str) -> None:
    assert not operator.ne(ANY, other)
    assert not operator.ne(other, ANY)


def test_the_wildcard_is_a_plain_text_to_others() -> None:
    assert ANY == "*" and hash(ANY) == hash("*")
    assert {"*": 1}[ANY] == 1
    assert isinstance(ANY, str)

"""Nodes of equal signatures take equal memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lowtide.memory.adapters.comfy.signature import signatures

GRAPH: dict[str, dict[str, Any]] = {
    "1": {"class_type": "Size", "inputs": {"width": 64, "height": 64}},
    "2": {"class_type": "Sampler", "inputs": {"latent": ["1", 0], "seed": 1, "steps": 4}},
    "3": {"class_type": "Save", "inputs": {"images": ["2", 0], "filename_prefix": "a"}},
}


def changed(node: str, **inputs: object) -> dict[str, dict[str, Any]]:
    graph = copy.deepcopy(GRAPH)
    graph[node]["inputs"].update(inputs)
    return graph


def test_ids_order_and_seeds_make_no_difference() -> None:
    plain = signatures(GRAPH)
    other = signatures(changed("2", seed=99) | {"9": GRAPH["1"]})
    assert {node: other[node] for node in plain} == plain
    assert other["9"] == plain["1"]
    assert signatures(changed("3", filename_prefix="b")) == plain


def test_a_changed_input_changes_what_follows_and_nothing_else() -> None:
    plain, other = signatures(GRAPH), signatures(changed("2", steps=5))
    assert plain["1"] == other["1"]
    assert plain["2"] != other["2"] and plain["3"] != other["3"]
    assert set(signatures(GRAPH, "level ultra").values()).isdisjoint(plain.values())


@pytest.mark.parametrize(
    "node",
    [None, 3, [], {}, {"class_type": "A"}, {"class_type": 1, "inputs": {}}, {"inputs": []}],
)
def test_what_is_no_node_has_none(node: object) -> None:
    graph: Any = {**GRAPH, "4": node, "5": {"class_type": "A", "inputs": {"x": ["4", 0]}}}
    assert set(signatures(graph)) == {"1", "2", "3"}


def test_circles_and_long_chains_end() -> None:
    circle = {
        str(at): {"class_type": "A", "inputs": {"x": [str((at + 1) % 3), 0]}} for at in range(3)
    }
    assert signatures(circle) == {}
    chain = {str(at): {"class_type": "A", "inputs": {"x": [str(at + 1), 0]}} for at in range(5000)}
    assert len(set(signatures(chain).values())) == 5000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
IDS = st.sampled_from(["1", "2", "3", "4"])
LINKS = st.tuples(IDS, st.integers(-1, 2)).map(list)
NODES = st.fixed_dictionaries(
    {
        "class_type": st.sampled_from(["A", "B"]),
        "inputs": st.dictionaries(st.text(max_size=3), LINKS | VALUES, max_size=4),
    }
)


@given(st.dictionaries(IDS, NODES | VALUES, max_size=4))
def test_any_graph_has_an_answer(graph: dict[str, Any]) -> None:
    assert set(signatures(graph)) <= set(graph)

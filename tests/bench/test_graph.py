"""The headless graph runner: order, links, checks, and what it keeps alive."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from lowtide.bench.graph import order, run_graph
from lowtide.memory.errors import ConfigError


class Value:
    """Gives a fresh object."""

    FUNCTION = "go"
    alive: list[weakref.ref[Any]] = []

    class Payload:
        pass

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"number": ("INT", {"min": 0, "max": 9})}}

    def go(self, number: int) -> tuple[Any, int]:
        payload = self.Payload()
        type(self).alive.append(weakref.ref(payload))
        return payload, number


class Pass:
    """Passes its input on; told its own id."""

    FUNCTION = "go"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"value": ("*",)},
            "optional": {"mode": (["slow", "fast"], {"default": "slow"}), "gain": ("FLOAT", {})},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def go(self, value: Any, unique_id: str, mode: str = "slow", gain: float = 1.0) -> tuple[Any]:
        return (value,)


class Show(Pass):
    """An output node."""

    OUTPUT_NODE = True

    def go(self, value: Any, unique_id: str, **more: Any) -> dict[str, Any]:
        return {"ui": {"id": unique_id, "value": value, **more}, "result": (value,)}


class Sink(Show):
    """An output node that keeps nothing."""

    def go(self, value: Any, unique_id: str, **more: Any) -> tuple[()]:
        return ()


class Witness(Show):
    """Counts the payloads alive while it runs."""

    def go(self, value: Any, unique_id: str, **more: Any) -> dict[str, Any]:
        gc.collect()
        return {"ui": {"alive": sum(ref() is not None for ref in Value.alive)}}


CLASSES = {"Value": Value, "Pass": Pass, "Show": Show, "Sink": Sink, "Witness": Witness}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def test_nodes_run_after_what_they_read_and_only_if_needed() -> None:
    graph = {
        "9": node("Show", value=["5", 0]),
        "5": node("Pass", value=["2", 1], mode="fast"),
        "2": node("Value", number=7),
        "8": node("Value", number=1),
    }
    seen: list[tuple[str, str]] = []
    shown = run_graph(graph, CLASSES, lambda *event: seen.append(event))
    assert seen == [("2", "Value"), ("5", "Pass"), ("9", "Show")]
    assert shown == {"9": {"id": "9", "value": 7}}


def test_a_result_goes_as_soon_as_its_last_reader_has_run() -> None:
    Value.alive.clear()
    graph = {
        "1": node("Value", number=1),
        "2": node("Show", value=["1", 1]),
        "3": node("Pass", value=["1", 0]),
        "4": node("Value", number=2),
        "5": node("Witness", value=["4", 1]),
        "6": node("Sink", value=["3", 0]),
    }
    # 6 holds 1's payload through 3, so while 5 runs only the payloads of 1 and of 4 may live.
    assert order(graph, CLASSES) == ["1", "2", "4", "5", "3", "6"]
    assert run_graph(graph, CLASSES)["5"]["alive"] == 2
    graph["5"], graph["6"] = graph["6"], graph["5"]
    Value.alive.clear()
    assert order(graph, CLASSES)[-1] == "6"
    assert run_graph(graph, CLASSES)["6"]["alive"] == 1


def test_one_node_may_read_another_twice() -> None:
    class Both(Show):
        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"one": ("*",), "other": ("*",)}}

        def go(self, one: Any, other: Any) -> dict[str, Any]:
            return {"ui": {"both": (one, other)}}

    graph = {"1": node("Value", number=3), "2": node("Both", one=["1", 1], other=["1", 1])}
    assert run_graph(graph, {**CLASSES, "Both": Both})["2"] == {"both": (3, 3)}


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            {"1": node("Nowhere")},
            r"'Nowhere', which is not here; .* knows Pass, Show",
        ),
        ({"1": node("Value", number=1)}, "no output node"),
        ({"1": node("Show")}, r"'value' of node 1 \(Show\) is missing"),
        ({"1": node("Show", value=["7", 0])}, "node 7: no such node"),
        (
            {"1": node("Show", value=["2", 0]), "2": node("Pass", value=["1", 0])},
            "circle: 1 -> 2 -> 1",
        ),
        ({"1": node("Show", value=["1", 0])}, "circle: 1 -> 1"),
        (
            {"1": node("Show", value=["2", 2]), "2": node("Value", number=1)},
            "output 2 of node 2, which has 2",
        ),
        ({"1": node("Show", value=1, mode="medium")}, "'medium'; choose slow, fast"),
        ({"1": node("Show", value=1, gain="much")}, "'much', which is no FLOAT"),
        (
            {"1": node("Show", value=["2", 0]), "2": node("Value", number=10)},
            "10; its maximum is 9",
        ),
        (
            {"1": node("Show", value=["2", 0]), "2": node("Value", number=-1)},
            "-1; its minimum is 0",
        ),
    ],
)
def test_a_graph_that_cannot_run_says_where(graph: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_graph(graph, CLASSES)

"""Cases: whether nodes would fit, by what they took before."""

from __future__ import annotations

from lowtide.memory import backend
from lowtide.memory.adapters.comfy.overlay import fit
from prompts import MIB, go
from watched import GPU, Watched, running


def case_a_node_that_ran_is_known_to_fit_or_not() -> None:
    with Watched("one") as server:
        one = running(server)
        go(one, x=("Node", 3), y=("Node", 9, "x"), out=("Leave", 0, "y"))
        graph = {
            "x": {"class_type": "Node", "inputs": {"mb": 3}},
            "y": {"class_type": "Node", "inputs": {"mb": 9, "a": ["x", 0]}},
        }
        free = fit.available()
        assert free == sum(backend.mem_get_info(GPU)[:1]) + backend.reserved(GPU)
        found = fit.check(graph)
        assert found["fits"] is True
        assert found["nodes"]["y"]["need"] == 9 * MIB and found["nodes"]["y"]["free"] == free
        assert found["nodes"]["y"]["why"].startswith("measured: 9.0 MB")
        graph["y"]["inputs"]["mb"] = 10
        found = fit.check(graph)
        assert found["fits"] is None and found["nodes"]["y"]["need"] is None
        assert "never measured" in found["nodes"]["y"]["why"]
        fit.SOURCES.insert(
            1, lambda graph, node, named: (MIB, "predicted") if node == "y" else None
        )
        try:
            assert fit.check(graph)["nodes"]["y"]["why"] == "predicted"
            graph["y"]["inputs"]["mb"] = 9
            assert fit.check(graph)["nodes"]["y"]["why"].startswith("measured"), "it is surer"
        finally:
            del fit.SOURCES[1]
        keep, fit.available = fit.available, lambda: 8 * MIB
        try:
            found = fit.check(graph)
        finally:
            fit.available = keep
        assert found["fits"] is False and found["nodes"]["x"]["fits"] is True
        assert found["nodes"]["y"]["remedy"].startswith("1.0 MB too much: add Lowtide")


def case_a_node_that_failed_says_nothing_of_what_it_needs() -> None:
    with Watched("one") as server:
        go(running(server), out=("Fails", 3))
        graph = {"out": {"class_type": "Fails", "inputs": {"mb": 3}}}
        assert fit.check(graph)["nodes"]["out"]["fits"] is None

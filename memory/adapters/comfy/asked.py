"""What the Lowtide nodes of a graph ask for, read from their widgets before any of them runs.

Loaders and LoRAs run before the nodes that hold a configuration: whoever waits for it comes too
late for them. A widget that is linked to another node is known once that one has run.
"""

from __future__ import annotations

from typing import Any

from ...cleanup import MOMENTS
from ...levels import MemoryOptimizationConfig

_SELECTOR = "LowtideMemoryLevelSelector"
_SETTINGS = "LowtideMemorySettings"
_POLICIES = ("off", "pressure", "always")


def rescue(graph: Any) -> str:
    """What the graph's selectors say about rescue (on, off, ask), the most careful of them.

    One that does not say means on; a graph without any, off.
    """
    said = [found.get("rescue", "on") for found in _inputs(graph, _SELECTOR)]
    if not said or "off" in said:
        return "off"
    return "ask" if "ask" in said else "on"


def cleanup(graph: Any) -> MemoryOptimizationConfig:
    """The strongest cleanup policy a selector of the graph names, with its settings' switches."""
    config = MemoryOptimizationConfig()
    for found in _inputs(graph, _SELECTOR):
        if found.get("cleanup") in _POLICIES:
            config = stronger(config, MemoryOptimizationConfig(cleanup=found["cleanup"]))
    changes = {
        name: found[name] == "on"
        for found in _inputs(graph, _SETTINGS)
        for name in (*MOMENTS, "cleanup_host")
        if found.get(name) in ("on", "off")
    }
    return config.replace(**changes)


def learns(graph: Any) -> bool:
    """Whether the prompt's figures may go to the history: unless a settings node says off."""
    return all(found.get("history") != "off" for found in _inputs(graph, _SETTINGS))


def step_peaks(graph: Any) -> bool:
    """Whether every sampling step's peak is measured: unless a settings node says off."""
    return all(found.get("step_peaks") != "off" for found in _inputs(graph, _SETTINGS))


def stronger(
    one: MemoryOptimizationConfig, other: MemoryOptimizationConfig
) -> MemoryOptimizationConfig:
    """Of two configurations the one that gives memory back sooner; the second if neither does."""
    rank = _POLICIES.index
    return one if rank(one.cleanup) > rank(other.cleanup) else other


def _inputs(graph: Any, class_type: str) -> list[dict[str, Any]]:
    nodes = map(graph.get_node, graph.all_node_ids())
    return [node["inputs"] for node in nodes if node["class_type"] == class_type]

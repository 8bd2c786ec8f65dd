"""Signatures do not tell apart what ComfyUI itself makes one."""

from __future__ import annotations

from typing import Any

from lowtide.memory.adapters.comfy.overlay.signature import signatures


def graph(cfg: Any) -> dict[str, dict[str, Any]]:
    return {"5": {"class_type": "KSampler", "inputs": {"cfg": cfg, "steps": 4, "seed": 1}}}


def test_a_whole_number_is_the_same_with_and_without_a_point() -> None:
    assert signatures(graph(4)) == signatures(graph(4.0))
    assert signatures(graph(4)) != signatures(graph(4.5))

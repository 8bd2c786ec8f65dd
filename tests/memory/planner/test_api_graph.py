"""Graphs from files: the editor's and the API's say the same, and links lead to what works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lowtide.memory.errors import ConfigError
from lowtide.memory.planner.api_graph import read_graph
from lowtide.memory.planner.wired import wired

EXAMPLES = Path(__file__).resolve().parents[3] / "example_workflows"
NATIVE = EXAMPLES / "lowtide_native.json"


def written(tmp_path: Path, graph: Any) -> Path:
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(graph))
    return file


@pytest.mark.parametrize("stem", ["lowtide_native", "lowtide_fit_check"])
def test_both_formats_of_an_example_say_the_same(stem: str) -> None:
    editors, apis = (wired(read_graph(EXAMPLES / f"{stem}{end}.json")) for end in ("", "_api"))
    assert (editors.parts.keys(), editors.work) == (apis.parts.keys(), apis.work)
    for part, loaded in editors.parts.items():
        assert (loaded.folder, loaded.names) == (apis.parts[part].folder, apis.parts[part].names)
    assert editors.optimized == apis.optimized and editors.uncounted == apis.uncounted
    assert (editors.selector is None) == (apis.selector is None)
    if editors.selector is not None and apis.selector is not None:
        for name in ("level", "budget_gb", "cleanup"):
            assert editors.selector[name] == apis.selector[name]


def test_the_example_is_read() -> None:
    run = wired(read_graph(NATIVE))
    assert run.parts["model"].names == ("v1-5-pruned-emaonly.safetensors",)
    assert (run.work.width, run.work.height, run.work.batch, run.work.steps) == (512, 512, 1, 20)
    assert run.work.guided and run.selector is not None and run.selector["level"] == "auto"


def editors() -> dict[str, Any]:
    """Two loaders; the second one's model comes over a reroute and a LoRA; a primitive's width."""
    return {
        "nodes": [
            {"id": 1, "type": "UNETLoader", "widgets_values": ["a.sft", "fp8_e4m3fn"]},
            {"id": 2, "type": "UNETLoader", "widgets_values": ["b.sft", "fp8_e5m2"]},
            {"id": 3, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 1}]},
            {
                "id": 4,
                "type": "LoraLoaderModelOnly",
                "inputs": [
                    {"name": "other", "type": "CLIP", "link": None},
                    {"name": "model", "type": "MODEL", "link": 2},
                ],
                "outputs": [{"type": "MODEL"}],
                "widgets_values": ["l.sft", 1.0],
            },
            {"id": 5, "type": "PrimitiveNode", "widgets_values": [768, "fixed"]},
            {
                "id": 6,
                "type": "EmptyLatentImage",
                "inputs": [{"name": "width", "type": "INT", "link": 3}],
                "widgets_values": [512, 256, 2],
            },
            {
                "id": 7,
                "type": "KSampler",
                "inputs": [
                    {"name": "model", "type": "MODEL", "link": 4},
                    {"name": "latent_image", "type": "LATENT", "link": 5},
                ],
                "widgets_values": [1, "randomize", 9, 1.0, "euler", "normal", 1.0],
            },
            {"id": 8, "type": "Note", "widgets_values": ["KSampler"]},
            {"id": 9, "type": "KSampler", "mode": 2},
        ],
        "links": [
            [1, 2, 0, 3, 0, "MODEL"],
            [2, 3, 0, 4, 1, "MODEL"],
            {"id": 3, "origin_id": 5, "origin_slot": 0},
            [4, 4, 0, 7, 0, "MODEL"],
            [5, 6, 0, 7, 3, "LATENT"],
        ],
    }


def test_links_of_the_editor_are_followed_to_the_loader_that_is_used(tmp_path: Path) -> None:
    graph = editors()
    run = wired(read_graph(written(tmp_path, graph)))
    assert (run.parts["model"].names, run.parts["model"].type) == (("b.sft",), "fp8_e5m2")
    assert run.uncounted == ("LoraLoaderModelOnly",)
    assert (run.work.width, run.work.height, run.work.batch, run.work.steps) == (768, 256, 2, 9)
    assert not run.work.guided
    graph["nodes"][3]["mode"] = 4  # bypassed: its model goes through, and no LoRA is added
    run = wired(read_graph(written(tmp_path, graph)))
    assert run.parts["model"].names == ("b.sft",) and run.uncounted == ()
    graph["nodes"][3]["mode"] = 2  # muted: nothing comes
    with pytest.raises(ConfigError, match="MODEL comes from nothing"):
        wired(read_graph(written(tmp_path, graph)))


def test_links_in_a_circle_come_from_nothing(tmp_path: Path) -> None:
    graph = editors()
    graph["nodes"][2]["inputs"][0]["link"] = 2
    with pytest.raises(ConfigError, match="MODEL comes from LoraLoaderModelOnly"):
        wired(read_graph(written(tmp_path, graph)))


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        ([1, 2], "is no ComfyUI graph"),
        ({}, "is no ComfyUI graph: it has no nodes"),
        ({"nodes": []}, "it has no nodes"),
        ({"nodes": [{"type": "KSampler"}]}, "is no ComfyUI graph: 'id'"),
        ({"nodes": [], "definitions": {"subgraphs": [{}]}}, "it has subgraphs"),
        ({"prompt": 3}, "is no ComfyUI graph"),
        ({"1": {"class_type": 3}}, "it has no nodes"),
    ],
)
def test_what_is_no_graph_is_said(tmp_path: Path, graph: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_graph(written(tmp_path, graph))


def test_a_file_that_is_not_there_and_a_folder_are_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_graph(path)


def test_what_the_api_wraps_is_taken_out(tmp_path: Path) -> None:
    node = {"class_type": "A", "inputs": {}}
    assert read_graph(written(tmp_path, {"prompt": {"1": node, "2": 5}})) == {"1": node}

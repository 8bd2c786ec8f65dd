"""The example workflows: every link fits, every node is known, both formats say the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lowtide.tests.hosts.graphs import EXAMPLES, example
from lowtide.tests.hosts.server import Server

pytestmark = [pytest.mark.host, pytest.mark.devices("npu")]

STEMS = ("lowtide_native", "lowtide_diffusers", "lowtide_fit_check")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
ANY = "*"
Workflow = dict[str, Any]


def workflow(stem: str) -> Workflow:
    return json.loads((EXAMPLES / f"{stem}.json").read_text(encoding="utf-8"))


def specification(info: dict[str, Any], type_: str) -> dict[str, list[Any]]:
    """Input name -> its specification, in the order ComfyUI shows them."""
    inputs = info[type_]["input"]
    return {**inputs.get("required", {}), **inputs.get("optional", {})}


def widgets(info: dict[str, Any], type_: str) -> list[str]:
    """Names of the values in ``widgets_values``, in order; "seed control" is the frontend's own."""
    names: list[str] = []
    for name, spec in specification(info, type_).items():
        options = spec[1] if len(spec) > 1 else {}
        if isinstance(spec[0], list) or spec[0] in WIDGETS:
            names.append(name)
            if options.get("control_after_generate"):
                names.append(f"{name} control")
            if options.get("image_upload"):
                names.append(f"{name} upload")
    return names


def to_api(info: dict[str, Any], ui: Workflow) -> dict[str, Any]:
    """What ComfyUI's frontend would queue for a workflow file."""
    origins = {link[0]: [str(link[1]), link[2]] for link in ui["links"]}
    graph: dict[str, Any] = {}
    for node in ui["nodes"]:
        values = dict(zip(widgets(info, node["type"]), node["widgets_values"], strict=True))
        inputs = {name: value for name, value in values.items() if " " not in name}
        for slot in node["inputs"]:
            if slot.get("link") is not None:
                inputs[slot["name"]] = origins[slot["link"]]
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def problems(info: dict[str, Any], ui: Workflow) -> list[str]:
    """Everything that is wrong with a workflow file, as sentences."""
    found: list[str] = []
    nodes = {node["id"]: node for node in ui["nodes"]}
    if len(nodes) != len(ui["nodes"]):
        found.append("two nodes share an id")
    if ui["last_node_id"] < max(nodes) or ui["last_link_id"] < max(it[0] for it in ui["links"]):
        found.append("last_node_id or last_link_id is too low")
    for node in ui["nodes"]:
        if node["type"] not in info:
            found.append(f"unknown node {node['type']}")
            continue
        expected = info[node["type"]]["output"]
        # A file may know fewer outputs than this ComfyUI's node has grown by now.
        known_outputs = [it["type"] for it in node["outputs"]]
        if known_outputs != expected[: len(known_outputs)]:
            found.append(f"{node['type']} {node['id']} has other outputs than {expected}")
        known = specification(info, node["type"])
        for slot in node["inputs"]:
            if slot["name"] not in known:
                found.append(f"{node['type']} {node['id']} has no input {slot['name']}")
    for link, origin, output, target, slot, type_ in ui["links"]:
        if origin not in nodes or target not in nodes:
            found.append(f"link {link} hangs in the air")
            continue
        source, sink = nodes[origin]["outputs"][output], nodes[target]["inputs"][slot]
        if link not in (source["links"] or ()) or sink["link"] != link:
            found.append(f"link {link} is not known at both ends")
        if type_ != source["type"] or (ANY not in (type_, sink["type"]) and type_ != sink["type"]):
            found.append(f"link {link} joins {source['type']} to {sink['type']} as {type_}")
    listed = {link[0] for link in ui["links"]}
    for node in ui["nodes"]:
        ends = [it["link"] for it in node["inputs"] if it.get("link") is not None]
        ends += [link for it in node["outputs"] for link in it["links"] or ()]
        found += [f"link {it} of node {node['id']} is not listed" for it in {*ends} - listed]
    return found


@pytest.mark.parametrize("stem", STEMS)
def test_links_and_nodes_are_consistent(server: Server, stem: str):
    assert problems(server.object_info(), workflow(stem)) == []


@pytest.mark.parametrize("stem", STEMS)
def test_both_formats_say_the_same(server: Server, stem: str):
    api = {
        node_id: {"class_type": node["class_type"], "inputs": node["inputs"]}
        for node_id, node in example(stem).items()
    }
    assert to_api(server.object_info(), workflow(stem)) == api


def test_every_example_is_tested_here():
    assert {path.stem for path in EXAMPLES.glob("*.jpg")} == set(STEMS)
    graphs = {path.stem.removesuffix("_api") for path in EXAMPLES.glob("*.json")}
    assert graphs == set(STEMS)


@pytest.mark.parametrize("stem", STEMS)
def test_every_workflow_has_its_picture_or_none_and_no_third_format(stem: str):
    files = {path.name for path in EXAMPLES.glob(f"{stem}*")}
    assert {f"{stem}.json", f"{stem}_api.json"} <= files
    assert all(name.endswith((".json", ".jpg", ".png", ".webp")) for name in files)


def test_a_broken_workflow_would_be_noticed(server: Server):
    info, ui = server.object_info(), workflow("lowtide_native")
    ui["links"][0][1] = 99
    ui["nodes"][1]["type"] = "Unheard"
    ui["nodes"][2]["outputs"].reverse()
    found = "\n".join(problems(info, ui))
    assert "hangs in the air" in found
    assert "unknown node Unheard" in found
    assert "has other outputs" in found

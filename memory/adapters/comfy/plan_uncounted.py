"""What a graph loads beside the models that are predicted, said for people: never silently less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...errors import LowtideError
from ...planner.api_graph import Graph, well_formed
from ...planner.header import read_header
from ...planner.wired import Wired
from ...units import format_bytes
from .exact_lora import TEMPORARY
from .plan_models import Models
from .plan_parts import file_of

_LORA = ("lora_name", "loras")
_CONTROL = ("control_net_name", "controlnet")


def uncounted(graph: Graph, run: Wired, models: Models) -> Iterator[str]:
    """A sentence for each thing of the run that its prediction leaves out."""
    loras = [kind for kind in run.uncounted if kind.startswith("LoraLoader")]
    for kind in run.uncounted:
        if kind not in loras:
            yield f"{kind} is not counted."
    if loras:
        most = format_bytes(TEMPORARY * _largest(models))
        yield (
            f"LoRAs are not counted ({_files(graph, loras, *_LORA)}): while one is added to a "
            f"layer it takes up to {most} more, at loading for layers that are resident and in "
            f"every step for those that are streamed."
        )
    controls = [kind for kind in _classes(graph) if kind.startswith("ControlNetLoader")]
    if controls:
        yield (
            f"ControlNets are not counted ({_files(graph, controls, *_CONTROL)}): while it samples "
            f"their weights lie beside the model's, and what they compute comes to it."
        )
    for reason in dict.fromkeys(run.left_out.values()):
        nodes = [node for node, why in run.left_out.items() if why == reason]
        named = ", ".join(f"{graph[node]['class_type']} {node}" for node in nodes)
        yield f"Not counted in full: {named}, for {reason}."
    for part, loaded in run.parts.items():
        if loaded.on_host:
            yield f"The {part.upper()} computes on the CPU in this graph, and is counted here."
    if run.settings:
        yield "What Memory Settings change is not counted: the rows are of the levels as they are."


def _classes(graph: Graph) -> list[str]:
    return list(dict.fromkeys(it["class_type"] for it in graph.values() if well_formed(it)))


def _files(graph: Graph, kinds: list[str], key: str, folder: str) -> str:
    """The files that nodes of these classes load, and how large their weights are."""
    found: dict[str, None] = {}
    for node in graph.values():
        if well_formed(node) and node["class_type"] in kinds:
            found[_size(node["inputs"], key, folder)] = None
    return ", ".join(found)


def _size(inputs: Mapping[str, Any], key: str, folder: str) -> str:
    name = inputs.get(key)
    if not isinstance(name, str):
        return "a file that is not named in the graph"
    try:
        return f"{name}, {format_bytes(read_header(file_of(folder, name)).nbytes)}"
    except LowtideError:
        return f"{name}, of unknown size"


def _largest(models: Models) -> int:
    """Values of the largest weight that a LoRA changes: of layers, not of tables of words."""
    roots = [] if models.model is None else [models.model.model]
    if models.clip is not None:
        roots.append(models.clip.cond_stage_model)
    counts = (
        it.numel()
        for root in roots
        for module in root.modules()
        if not isinstance(module, torch.nn.Embedding)
        for it in module.parameters(recurse=False)
    )
    return max(counts, default=0)

"""Graphs in API format, from the example workflows and from ComfyUI's stock nodes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from .server import Graph

# Ids of the nodes that tests add to the examples.
LATENTS, REPORT = "90", "91"
EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"


def stock(checkpoint: str, size: int = 128, steps: int = 2, seed: int = 1) -> Graph:
    """Checkpoint, two prompts, sampler, decode, save, without any node of the pack."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a lighthouse", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
        "4": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": size, "height": size, "batch_size": 1},
        },
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": seed,
                "steps": steps,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "test"}},
    }


def example(stem: str) -> Graph:
    """The API form of an example workflow."""
    return json.loads((EXAMPLES / f"{stem}_api.json").read_text(encoding="utf-8"))


def node_of(graph: Graph, class_type: str) -> str:
    """The id of the graph's one node of a class."""
    found = [node_id for node_id, node in graph.items() if node["class_type"] == class_type]
    if len(found) != 1:
        raise AssertionError(f"the graph has {len(found)} nodes of class {class_type}")
    return found[0]


def with_inputs(graph: Graph, changes: dict[str, dict[str, Any]]) -> Graph:
    """A copy in which every node of each named class has the given inputs; one must exist."""
    changed = copy.deepcopy(graph)
    for class_type, inputs in changes.items():
        nodes = [node for node in changed.values() if node["class_type"] == class_type]
        if not nodes:
            raise AssertionError(f"the graph has no node of class {class_type}")
        for node in nodes:
            unknown = set(inputs) - set(node["inputs"])
            if unknown:
                raise AssertionError(f"{class_type} has no inputs {sorted(unknown)}")
            node["inputs"].update(inputs)
    return changed


def native(
    checkpoint: str, level: str, *, size: int = 128, steps: int = 2, **selector: Any
) -> Graph:
    """The native example, small, plus the raw latents and Optimize Pipeline's report."""
    graph = with_inputs(
        example("lowtide_native"),
        {
            "CheckpointLoaderSimple": {"ckpt_name": checkpoint},
            "LowtideMemoryLevelSelector": {"level": level, **selector},
            "EmptyLatentImage": {"width": size, "height": size},
            "KSampler": {"steps": steps, "seed": 1},
        },
    )
    sampler, optimize = node_of(graph, "KSampler"), node_of(graph, "LowtideOptimizePipeline")
    graph[LATENTS] = {
        "class_type": "SaveLatent",
        "inputs": {"samples": [sampler, 0], "filename_prefix": "test"},
    }
    graph[REPORT] = {"class_type": "PreviewAny", "inputs": {"source": [optimize, 3]}}
    return graph


def diffusers(
    folder: str, level: str, *, size: int = 128, steps: int = 2, **selector: Any
) -> Graph:
    """The diffusers example, small, plus Optimize Diffusers Pipeline's report."""
    graph = with_inputs(
        example("lowtide_diffusers"),
        {
            "LowtideLoadDiffusersPipeline": {"folder": folder},
            "LowtideMemoryLevelSelector": {"level": level, **selector},
            "LowtideGenerate": {"width": size, "height": size, "steps": steps, "seed": 1},
        },
    )
    optimize = node_of(graph, "LowtideOptimizeDiffusersPipeline")
    graph[REPORT] = {"class_type": "PreviewAny", "inputs": {"source": [optimize, 1]}}
    return graph


def bypassing(graph: Graph) -> Graph:
    """The native graph with every use of Optimize Pipeline's outputs taken from the loader."""
    optimize, loader = (
        node_of(graph, "LowtideOptimizePipeline"),
        node_of(graph, "CheckpointLoaderSimple"),
    )
    changed = copy.deepcopy(graph)
    for node in changed.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == optimize:
                node["inputs"][name] = [loader, value[1]]
    lowtide = [optimize, node_of(graph, "LowtideMemoryLevelSelector"), REPORT]
    for node_id in lowtide:
        del changed[node_id]
    return changed

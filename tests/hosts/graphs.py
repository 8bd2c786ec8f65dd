"""Graphs in API format, from the example workflows and from ComfyUI's stock nodes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from .server import Graph

EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"


def stock(checkpoint: str, size: int = 256, steps: int = 2, seed: int = 1) -> Graph:
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

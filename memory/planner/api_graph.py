"""A ComfyUI graph as its API has it: node id -> class and inputs, read from either kind of file.

The editor's files have widgets in an order and without names, which are known here for the core's
loaders, samplers and latents, and for Lowtide's nodes; reroutes, bypassed and muted nodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError

Graph = Mapping[str, Mapping[str, Any]]

_WIDGETS: dict[str, tuple[str, ...]] = {
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "CLIPLoader": ("clip_name", "type", "device"),
    "DualCLIPLoader": ("clip_name1", "clip_name2", "type", "device"),
    "TripleCLIPLoader": ("clip_name1", "clip_name2", "clip_name3"),
    "VAELoader": ("vae_name",),
    "LoraLoader": ("lora_name",),
    "LoraLoaderModelOnly": ("lora_name",),
    "ControlNetLoader": ("control_net_name",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "KSampler": ("seed", "control", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "LowtideMemoryLevelSelector": ("level", "budget_gb", "cleanup"),
}
_MUTED, _BYPASSED = 2, 4
_PRIMITIVE, _REROUTE = "PrimitiveNode", "Reroute"
_NEVER_RUN = ("Note", "MarkdownNote", _PRIMITIVE, _REROUTE)
_MOST = 64
"""Nodes without a work of their own that a link may lead through."""


def read_graph(path: Path) -> dict[str, dict[str, Any]]:
    """The graph in a file of the editor's or the API's.

    Raises:
        ConfigError: there is none in it, or one that only the editor can take apart.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(raw.get("nodes"), list):
            found = _Editors(raw).graph()
        else:
            graph = raw.get("prompt", raw)
            found = {str(key): dict(node) for key, node in graph.items() if well_formed(node)}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is no ComfyUI graph: {error}") from None
    if not found:
        raise ConfigError(f"{path} is no ComfyUI graph: it has no nodes")
    return found


def links(node: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Inputs that come from other nodes: name -> (node id, output)."""
    return {
        name: (value[0], value[1])
        for name, value in node["inputs"].items()
        if isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    }


def well_formed(node: Any) -> bool:
    """Whether it is a node of the API format."""
    return (
        isinstance(node, Mapping)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), Mapping)
    )


class _Editors:
    """One graph of the editor's."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        if (raw.get("definitions") or {}).get("subgraphs"):
            raise ConfigError(
                "it has subgraphs, which only the editor can take apart: export it in the API's "
                "format there, and plan that file"
            )
        self.nodes: dict[str, Any] = {str(node["id"]): node for node in raw["nodes"]}
        self.links: dict[Any, tuple[str, int]] = {}
        for link in raw.get("links") or ():
            if isinstance(link, Mapping):
                self.links[link["id"]] = str(link["origin_id"]), int(link["origin_slot"])
            else:
                self.links[link[0]] = str(link[1]), int(link[2])

    def graph(self) -> dict[str, dict[str, Any]]:
        return {
            key: {"class_type": str(node["type"]), "inputs": self._inputs(node)}
            for key, node in self.nodes.items()
            if node.get("mode", 0) not in (_MUTED, _BYPASSED) and node["type"] not in _NEVER_RUN
        }

    def _inputs(self, node: Mapping[str, Any]) -> dict[str, Any]:
        given = node.get("widgets_values") or []
        if isinstance(given, Mapping):
            found = dict(given)
        else:
            found = dict(zip(_WIDGETS.get(node["type"], ()), given, strict=False))
        for socket in node.get("inputs") or ():
            if socket.get("link") is not None:
                found.pop(socket["name"], None)
                source = self._source(socket["link"])
                if source is not None:
                    found[socket["name"]] = self._value(*source)
        return found

    def _value(self, node: str, slot: int) -> Any:
        """What an input has of an output: a link, or what is written into a primitive node."""
        found = self.nodes[node]
        if found["type"] == _PRIMITIVE and found.get("widgets_values"):
            return found["widgets_values"][0]
        return [node, slot]

    def _source(self, link: Any) -> tuple[str, int] | None:
        """Node and output that a link comes from, past those that only hand it on."""
        for _ in range(_MOST):
            found = self.links.get(link)
            node = None if found is None else self.nodes.get(found[0])
            if found is None or node is None or node.get("mode", 0) == _MUTED:
                return None
            sockets = node.get("inputs") or []
            if node["type"] == _REROUTE:
                link = sockets[0].get("link") if sockets else None
            elif node.get("mode", 0) == _BYPASSED:
                link = self._bypassed(sockets, node["outputs"], found[1])
            else:
                return found
        return None

    @staticmethod
    def _bypassed(sockets: list[Any], outputs: list[Any], slot: int) -> Any:
        """The link that comes out of a bypassed node: of an input of the same type, the one in the
        same place first."""
        kind = outputs[slot]["type"]
        same = [*sockets[slot : slot + 1], *sockets]
        return next((it.get("link") for it in same if it.get("type") == kind), None)

"""What a ComfyUI graph asks for, read from its JSON: files to load, sizes, steps, Lowtide's level.

Graphs of the core's loaders, an empty latent, a KSampler, a VAEDecode, and Lowtide's nodes. Both
formats are read: the API's, and the editor's, whose widgets have an order and no names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .work import Work

_WIDGETS: dict[str, tuple[str, ...]] = {
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "CLIPLoader": ("clip_name", "type"),
    "DualCLIPLoader": ("clip_name1", "clip_name2", "type"),
    "TripleCLIPLoader": ("clip_name1", "clip_name2", "clip_name3"),
    "VAELoader": ("vae_name",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "KSampler": ("seed", "control", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "VAEDecode": (),
    "LowtideMemoryLevelSelector": ("level", "budget_gb"),
}
_LOADERS = ("CheckpointLoaderSimple", "UNETLoader")
_LATENTS = ("EmptyLatentImage", "EmptySD3LatentImage")


@dataclass(frozen=True)
class Graph:
    """What matters of a graph. File names are as the loaders have them.

    Attributes:
        checkpoint: of everything; else ``unet``, ``clips`` with their ``clip_type``, ``vae``.
        level, budget_gb: of Lowtide's Level Selector; ``None`` = there is none.
    """

    work: Work
    checkpoint: str | None = None
    unet: str | None = None
    clips: tuple[str, ...] = ()
    clip_type: str = "stable_diffusion"
    vae: str | None = None
    level: str | None = None
    budget_gb: float | None = None


def read_graph(path: Path) -> Graph:
    """The graph in a file.

    Raises:
        ConfigError: no graph, one that loads or samples nothing, or two that sample.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        nodes = _nodes(raw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no ComfyUI graph: {error}") from None

    def values(*kinds: str) -> dict[str, Any] | None:
        found = [values for kind, values in nodes if kind in kinds]
        if len(found) > 1 and kinds[0] == "KSampler":
            raise ConfigError(
                f"{path.name} has {len(found)} KSamplers; plan each in a graph of its own"
            )
        return found[0] if found else None

    sampler, loader = values("KSampler"), values(*_LOADERS)
    latent = values(*_LATENTS)
    for what, found in (("loader", loader), ("KSampler", sampler), ("empty latent", latent)):
        if found is None:
            raise ConfigError(
                f"{path.name} has no {what} node that is known here; known are "
                f"{', '.join(sorted(_WIDGETS))}"
            )
    assert sampler is not None and loader is not None and latent is not None
    clips = values("CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader") or {}
    selector = values("LowtideMemoryLevelSelector") or {}
    budget = float(_plain(selector, "budget_gb", 0.0))
    names = [clips[key] for key in sorted(clips) if key.startswith("clip_name")]
    return Graph(
        Work(
            width=int(_plain(latent, "width", 512)),
            height=int(_plain(latent, "height", 512)),
            batch=int(_plain(latent, "batch_size", 1)),
            steps=int(_plain(sampler, "steps", 20)),
            guided=float(_plain(sampler, "cfg", 7.0)) != 1.0,
        ),
        loader.get("ckpt_name"),
        loader.get("unet_name"),
        tuple(names),
        str(clips.get("type", "sd3" if len(names) == 3 else "stable_diffusion")),
        (values("VAELoader") or {}).get("vae_name"),
        selector.get("level"),
        budget or None,
    )


def _plain(values: dict[str, Any], name: str, usual: float) -> Any:
    """A widget's value; the usual one where another node gives it."""
    value = values.get(name, usual)
    return usual if isinstance(value, (list, dict)) else value


def _nodes(raw: Any) -> list[tuple[str, dict[str, Any]]]:
    """(class, inputs by name) of every node that is known."""
    if isinstance(raw.get("nodes"), list):
        found = []
        for node in raw["nodes"]:
            names = _WIDGETS.get(node["type"])
            if names is not None and node.get("mode", 0) == 0:
                given = node.get("widgets_values") or []
                found.append((node["type"], dict(zip(names, given, strict=False))))
        return found
    graph = raw.get("prompt", raw)
    return [
        (node["class_type"], dict(node["inputs"]))
        for node in graph.values()
        if node["class_type"] in _WIDGETS
    ]

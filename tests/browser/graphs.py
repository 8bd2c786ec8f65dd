"""Small workflows in the format the frontend loads, from graphs in API format."""

from __future__ import annotations

from typing import Any

from lowtide.tests.hosts.fixtures import CHECKPOINT

WORKFLOW = "6d8f3c1e-5c1a-4d27-9b61-2f60a1d1c0de"
COLUMN, ROW = 330, 220
# Class -> its outputs' types, then its inputs' (a socket) or None (a widget), in the node's order.
_CLASSES: dict[str, tuple[list[str], dict[str, str | None]]] = {
    "CheckpointLoaderSimple": (["MODEL", "CLIP", "VAE"], {"ckpt_name": None}),
    "CLIPTextEncode": (["CONDITIONING"], {"clip": "CLIP", "text": None}),
    "EmptyLatentImage": (["LATENT"], {"width": None, "height": None, "batch_size": None}),
    "KSampler": (
        ["LATENT"],
        {
            "model": "MODEL",
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
            **dict.fromkeys(("seed", "seed control", "steps", "cfg", "sampler_name")),
            **dict.fromkeys(("scheduler", "denoise")),
        },
    ),
    "VAEDecode": (["IMAGE"], {"samples": "LATENT", "vae": "VAE"}),
    "SaveImage": ([], {"images": "IMAGE", "filename_prefix": None}),
}


def workflow(size: int = 128, steps: int = 4, seed: int = 1) -> dict[str, Any]:
    """Text to image with ComfyUI's stock nodes, ids 1 to 7."""
    nodes: list[tuple[str, dict[str, Any]]] = [
        ("CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}),
        ("CLIPTextEncode", {"clip": (1, 1), "text": "a lighthouse"}),
        ("CLIPTextEncode", {"clip": (1, 1), "text": "blurry"}),
        ("EmptyLatentImage", {"width": size, "height": size, "batch_size": 1}),
        (
            "KSampler",
            {
                "model": (1, 0),
                "positive": (2, 0),
                "negative": (3, 0),
                "latent_image": (4, 0),
                "seed": seed,
                "seed control": "fixed",
                "steps": steps,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        ),
        ("VAEDecode", {"samples": (5, 0), "vae": (1, 2)}),
        ("SaveImage", {"images": (6, 0), "filename_prefix": "browser"}),
    ]
    return _saved(nodes)


def _saved(nodes: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    made: list[dict[str, Any]] = []
    links: list[list[Any]] = []
    for number, (type_, values) in enumerate(nodes, start=1):
        outputs, inputs = _CLASSES[type_]
        slots: list[dict[str, Any]] = []
        for name, socket in inputs.items():
            if socket is None:
                continue
            origin, slot = values[name]
            links.append([len(links) + 1, origin, slot, number, len(slots), socket])
            slots.append({"name": name, "type": socket, "link": len(links)})
        made.append(
            {
                "id": number,
                "type": type_,
                "pos": [60 + COLUMN * ((number - 1) % 3), 120 + ROW * ((number - 1) // 3)],
                "size": [300, 120],
                "flags": {},
                "order": number - 1,
                "mode": 0,
                "inputs": slots,
                "outputs": [{"name": it, "type": it, "links": []} for it in outputs],
                "properties": {"Node name for S&R": type_},
                "widgets_values": [values[it] for it, socket in inputs.items() if socket is None],
            }
        )
    for link, origin, slot, *_ in links:
        made[origin - 1]["outputs"][slot]["links"].append(link)
    return {
        "id": WORKFLOW,
        "revision": 0,
        "last_node_id": len(made),
        "last_link_id": len(links),
        "nodes": made,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def in_subgraph() -> str:
    """JavaScript that puts nodes 5 and 6 of the graph on the screen into a subgraph."""
    return """() => {
      const graph = app.graph;
      const items = new Set([graph.getNodeById(5), graph.getNodeById(6)]);
      return String(graph.convertToSubgraph(items).node.id);
    }"""

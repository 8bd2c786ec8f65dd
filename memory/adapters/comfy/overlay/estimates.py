"""ComfyUI's own estimates of what samplers and VAEs take, for models its cache already holds.

The core makes room by these figures before a model computes; they are rough, and on the safe side.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ....planner.api_graph import Graph, links
from ....planner.latents import Size, size_of
from ....units import format_bytes
from .. import executor, visits
from ..images import image_size
from ..residency import residency_of
from .answers import Found
from .nodes_measured import last_signatures

logger = logging.getLogger("lowtide")

_FRAMES = 4
"""Frames of a video to one of its latents', after the first."""


def estimate(graph: Graph, node: str, named: Mapping[str, str]) -> Found | None:
    """Bytes by the core's estimate: weights and computing; ``None`` where it has none."""
    try:
        linked = links(graph[node])
        if "model" in linked and "latent_image" in linked:
            return _sampling(graph, linked, named)
        if "vae" in linked and "samples" in linked:
            return _decoding(graph, linked, named)
    except Exception:  # a foreign model may lack whatever is asked of it
        logger.debug("no estimate for node %s", node, exc_info=True)
    return None


def _sampling(
    graph: Graph, linked: Mapping[str, tuple[str, int]], named: Mapping[str, str]
) -> Found | None:
    model = cached(linked["model"], named)
    if model is None or not hasattr(model, "model_size"):
        return None
    shape = latent_shape(graph, linked["latent_image"], named, of_model(model))
    if shape is None:
        return None
    computing = int(model.model.memory_required([shape[0] * 2, *shape[1:]]))
    return _sum("ComfyUI's estimate for sampling", _weights(model), computing)


def _decoding(
    graph: Graph, linked: Mapping[str, tuple[str, int]], named: Mapping[str, str]
) -> Found | None:
    vae = cached(linked["vae"], named)
    if vae is None or not hasattr(vae, "memory_used_decode"):
        return None
    shape = latent_shape(graph, linked["samples"], named, of_vae(vae))
    if shape is None:
        return None
    computing = int(vae.memory_used_decode(shape, vae.vae_dtype))
    return _sum("ComfyUI's estimate for decoding", _weights(vae.patcher), computing)


def _sum(what: str, weights: int, computing: int) -> Found:
    why = f"{what}: {format_bytes(weights)} of weights, {format_bytes(computing)} beside them"
    return weights + computing, why


def _weights(patcher: Any) -> int:
    """Bytes of weights on the device: all, or what a cap of Lowtide's leaves there."""
    size, residency = int(patcher.model_size()), residency_of(patcher)
    if residency is None or residency.cap is None:
        return size
    return min(size, residency.cap + residency.streaming)


def cached(link: tuple[str, int], named: Mapping[str, str]) -> Any:
    """What the cache holds of a node's output, if it is the same node still."""
    source, socket = link
    caches = executor.caches()
    if caches is None or source not in named or last_signatures().get(source) != named[source]:
        return None
    values = visits.outputs_of(caches, source)
    if values is None or not 0 <= socket < len(values) or not values[socket]:
        return None
    return values[socket][0]


@dataclass(frozen=True)
class Latents:
    """What a model's latents are like.

    Attributes:
        scale: pixels of the image to one of theirs.
        dimensions: 3 = they have frames.
    """

    channels: int
    scale: int
    dimensions: int


def of_model(model: Any) -> Latents:
    """Those that a MODEL samples."""
    form = model.model.latent_format
    scale = getattr(form, "spacial_downscale_ratio", None) or 8
    return Latents(int(form.latent_channels), int(scale), int(form.latent_dimensions))


def of_vae(vae: Any) -> Latents:
    """Those that a VAE decodes."""
    scale = int(vae.spacial_compression_decode())
    return Latents(int(vae.latent_channels), scale, int(vae.latent_dim))


def latent_shape(
    graph: Graph, link: tuple[str, int], named: Mapping[str, str], like: Latents
) -> list[int] | None:
    """Of the latents that come over a link: from the cache, or from the node that sets the size."""
    scale = like.scale

    def held(link: tuple[str, int]) -> Size | None:
        made = cached(link, named)
        samples = made.get("samples") if isinstance(made, dict) else None
        if not isinstance(samples, torch.Tensor) or samples.ndim < 4:
            return None
        batch, _, *frames, height, width = samples.shape
        shown = _FRAMES * (frames[0] - 1) + 1 if frames else 1
        return Size(width * scale, height * scale, batch, shown)

    size = size_of(graph, link, image=image_size, held=held)
    if size is None:
        return None
    frames = [(size.frames - 1) // _FRAMES + 1] if like.dimensions == 3 else []
    return [size.batch, like.channels, *frames, size.height // scale, size.width // scale]

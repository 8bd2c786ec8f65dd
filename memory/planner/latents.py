"""How large the latents are that a link of a graph brings, read before the graph runs.

The links are followed back to the node that sets the size: an empty latent, or an image that is
loaded. What lies between may scale it, or repeat it. Pure: who knows files and caches is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .api_graph import Graph, links, well_formed

Link = tuple[str, int]

FOUR_CHANNELS = "EmptyLatentImage"
_ENCODERS = ("VAEEncode", "VAEEncodeForInpaint", "VAEEncodeTiled", "InpaintModelConditioning")
_SCALED_BY = ("LatentUpscaleBy", "ImageScaleBy")
_LOADERS = ("LoadImage", "LoadImageMask")
_ALIKE = (
    "ImageInvert",
    "ImageBlur",
    "ImageSharpen",
    "ImageQuantize",
    "VAEDecode",
    "VAEDecodeTiled",
)
"""Classes whose images are as large as what they are given."""
_BACK = 64
"""Nodes followed back."""
_MOST = 1 << 16
"""Pixels of an edge; more is nobody's wish."""
_PIXEL = 8
"""Edges of encoded images are cut to multiples of it."""


@dataclass(frozen=True)
class Size:
    """Of latents, in the pixels and frames of their image.

    Attributes:
        channels: of the latents as they are; ``None`` = those of the model that takes them.
    """

    width: int
    height: int
    batch: int = 1
    frames: int = 1
    channels: int | None = None


Held = Callable[[Link], Size | None]
Image = Callable[[str], tuple[int, int] | None]
_Change = Callable[[Size], Size]


def size_of(
    graph: Graph,
    link: Link,
    *,
    image: Image = lambda _name: None,
    held: Held = lambda _link: None,
) -> Size | None:
    """The size of what comes over ``link``; ``None`` where the graph does not tell.

    Args:
        image: (width, height) in pixels of the image a loader names; ``None`` = not known.
        held: the size of what was already made and comes over a link; ``None`` = nothing was.
    """
    changes: list[_Change] = []
    for _ in range(_BACK):
        found = held(link)
        node = graph.get(link[0])
        if found is None:
            if node is None or not well_formed(node):
                return None
            found = _beginning(node, image)
        if found is not None:
            for change in reversed(changes):
                found = change(found)
            return found if 0 < found.width <= _MOST and 0 < found.height <= _MOST else None
        assert node is not None
        onward = _onward(node, changes)
        if onward is None:
            return None
        link = onward
    return None


def _beginning(node: Mapping[str, Any], image: Image) -> Size | None:
    """Of a node that makes latents or images of nothing."""
    inputs, kind = node["inputs"], node["class_type"]
    if kind in _LOADERS:
        name = inputs.get("image")
        edges = image(name) if isinstance(name, str) else None
        return None if edges is None else Size(*edges)
    if _source(node) is not None or not {"width", "height"} <= set(inputs):
        return None
    sizes = [inputs["width"], inputs["height"], inputs.get("batch_size", 1)]
    frames = inputs.get("length", 1)
    if not all(type(size) is int and 0 < size <= _MOST for size in (*sizes, frames)):
        return None  # another node says so
    width, height, batch = sizes
    return Size(width, height, batch, frames, 4 if kind == FOUR_CHANNELS else None)


def _source(node: Mapping[str, Any]) -> Link | None:
    """Where a node's latents or images come from."""
    linked = links(node)
    for name in ("latent_image", "samples", "pixels", "image"):
        if name in linked:
            return linked[name]
    return None


def _onward(node: Mapping[str, Any], changes: list[_Change]) -> Link | None:
    """The next link back, what the node does to the size noted; ``None`` = that is not known."""
    inputs, kind, source = node["inputs"], node["class_type"], _source(node)
    linked = links(node)
    if source is None:
        return None
    if {"width", "height"} <= set(inputs):
        edges = inputs["width"], inputs["height"]
        if not all(type(edge) is int and 0 <= edge <= _MOST for edge in edges):
            return None
        changes.append(lambda size: _resized(size, *edges))
    elif kind in _SCALED_BY:
        factor = inputs.get("scale_by")
        if type(factor) not in (int, float):
            return None
        changes.append(lambda size: _scaled(size, factor))
    elif kind == "ImageScaleToTotalPixels":
        pixels = inputs.get("megapixels")
        if type(pixels) not in (int, float):
            return None
        changes.append(lambda size: _scaled(size, math.sqrt(pixels * 2**20 / _area(size))))
    elif kind == "RepeatLatentBatch":
        amount = inputs.get("amount")
        if type(amount) is not int:
            return None
        changes.append(lambda size: replace(size, batch=size.batch * amount))
    elif kind in _ENCODERS:
        changes.append(_encoded)
    elif {"model", "guider"} & set(linked):
        changes.append(lambda size: replace(size, channels=None))  # those of that model now
    elif not _keeps(kind, linked):
        return None
    return source


def _keeps(kind: str, linked: Mapping[str, Link]) -> bool:
    """Whether a node that is not known gives out what is as large as what it is given."""
    if kind in _ALIKE:
        return True
    return bool({"samples", "latent_image"} & set(linked)) and "scale" not in kind.lower()


def _resized(size: Size, width: int, height: int) -> Size:
    """To given edges; an edge of 0 keeps the form of the other, and both the size."""
    if not width and not height:
        return size
    width = width or max(1, round(size.width * height / size.height))
    height = height or max(1, round(size.height * width / size.width))
    return replace(size, width=width, height=height)


def _scaled(size: Size, factor: float) -> Size:
    return replace(size, width=round(size.width * factor), height=round(size.height * factor))


def _area(size: Size) -> int:
    return max(1, size.width * size.height)


def _encoded(size: Size) -> Size:
    return replace(
        size,
        width=size.width // _PIXEL * _PIXEL,
        height=size.height // _PIXEL * _PIXEL,
        channels=None,
    )

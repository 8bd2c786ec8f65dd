"""What ComfyUI's cache of node outputs holds: tensors and models, on the device and on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ...holders import Holder
from .graph import patchers_in

RESULTS = "ComfyUI's cached results"
_DEPTH = 6


def tensors(caches: Any) -> list[torch.Tensor]:
    """The tensors among the cached outputs, each storage once."""
    found: dict[tuple[torch.device, int], torch.Tensor] = {}
    for outputs in _outputs(caches.outputs):
        for tensor in _inside(outputs, _DEPTH):
            try:
                found[(tensor.device, tensor.untyped_storage().data_ptr())] = tensor
            except (RuntimeError, NotImplementedError):
                continue  # without storage: fake, sparse, functional ones
    return list(found.values())


def on_host(caches: Any) -> list[Holder]:
    """Who holds host memory through the cache, the largest first: models by name, and the rest."""
    models: dict[int, tuple[str, int]] = {}
    for outputs in _outputs(caches.outputs):
        for patcher in patchers_in(outputs):
            size = int(patcher.model_size()) - int(patcher.loaded_size())
            models[id(patcher.model)] = (type(patcher.model).__name__, size)
    held = [Holder(f"{name}, in {RESULTS}", size, 1) for name, size in models.values() if size > 0]
    plain = [it for it in tensors(caches) if it.device.type == "cpu"]
    count = sum(it.untyped_storage().nbytes() for it in plain)
    if count:
        held.append(Holder(RESULTS, count, len(plain)))
    return sorted(held, key=lambda holder: holder.held, reverse=True)


def _outputs(cache: Any) -> Iterator[Any]:
    """The outputs in a cache and in those it keeps for nodes that other nodes made."""
    for entry in list(getattr(cache, "cache", {}).values()):
        yield getattr(entry, "outputs", entry)
    for inner in list(getattr(cache, "subcaches", {}).values()):
        yield from _outputs(inner)


def _inside(value: Any, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _inside(item, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for item in value:
            yield from _inside(item, depth - 1)

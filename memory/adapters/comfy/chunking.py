"""Forward chunking for ComfyUI's own models: some tokens at a time through feed-forward blocks.

A clone gets, as object patch, a twin of each block: an object of a generated subclass that shares
the block's dictionaries of parameters and submodules. Paths of parameters stay what they were, so
that LoRAs, FP8 storage and streaming find the layers; the core puts the block itself back when it
unpatches. (A patch of the block's ``forward`` would not do: the core restores a bound method,
which stays behind as an attribute and keeps the block alive by a cycle.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ...levels import MemoryOptimizationConfig
from ...strategies.base import Applied, Skipped, Undo, override, undo_all
from .feed_forwards import feed_forwards, fused_blocks

if TYPE_CHECKING:
    _Block = Any
else:
    _Block = object

NAME = "forward chunking"
_PART = "model"
_classes: dict[type, type] = {}


class Chunked(_Block):
    """Mixed into a feed-forward block's class by ``chunk``."""

    lowtide_chunk: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the block's own forward, on at most ``lowtide_chunk`` tokens at a time.

        Tokens are all dimensions but the last of the first argument. Weights that are streamed
        are brought to the device once for all chunks.
        """
        x = args[0] if args else None
        if not isinstance(x, torch.Tensor) or x.ndim < 2 or torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        tokens = x[..., 0].numel()
        if tokens <= self.lowtide_chunk:
            return super().forward(*args, **kwargs)
        rows = x.reshape(1, tokens, x.shape[-1])
        whole: torch.Tensor | None = None
        with streamed_once(self, x):
            for first in range(0, tokens, self.lowtide_chunk):
                part = super().forward(
                    rows[:, first : first + self.lowtide_chunk], *args[1:], **kwargs
                )
                if whole is None:
                    whole = part.new_empty((1, tokens, part.shape[-1]))
                whole[:, first : first + part.shape[1]] = part
                del part
        assert whole is not None
        return whole.reshape(*x.shape[:-1], whole.shape[-1])


def chunk(patcher: Any, config: MemoryOptimizationConfig, entries: list[Any]) -> Any:
    """A clone of a MODEL whose feed-forward blocks work on ``config.forward_chunk_size`` tokens.

    The patcher itself comes back where nothing is to be changed; ``entries`` gets the outcome.
    """
    size = config.forward_chunk_size
    if size is None:
        return patcher
    patched = set(patcher.object_patches)
    found = dict(feed_forwards(patcher.model))
    taken = [path for path in found if _is_taken(patcher, path, patched)]
    fused = fused_blocks(patcher.model)
    if fused:
        reason = f"{fused} blocks compute it in one layer with the attention: they stay whole"
        entries.append(Skipped(NAME, _PART, reason))
    if taken:
        reason = f"another node has replaced {len(taken)} feed-forward blocks: they stay"
        entries.append(Skipped(NAME, _PART, reason))
    paths = [path for path in found if path not in taken]
    if not paths:
        if not fused and not taken:
            reason = "it has no feed-forward block that Lowtide knows"
            entries.append(Skipped(NAME, _PART, reason))
        return patcher
    clone = patcher.clone()
    for path in paths:
        clone.add_object_patch(path, _twin(patcher.get_model_object(path), size))
    detail = f"{size} tokens at a time through {len(paths)} feed-forward blocks"
    entries.append(Applied(NAME, _PART, detail, _unplug))
    return clone


def held_bytes(patcher: Any) -> int:
    """Most bytes of streamed weights that one chunked block holds at once, in compute type."""
    compute = getattr(patcher.model, "manual_cast_dtype", None)
    most = 0
    for block in patcher.object_patches.values():
        if isinstance(block, Chunked):
            sizes = [
                weight.numel() * max(weight.itemsize, (compute or weight.dtype).itemsize)
                for weight in block.parameters()
            ]
            most = max(most, sum(sizes))
    return most


@contextmanager
def streamed_once(block: Any, x: torch.Tensor) -> Iterator[None]:
    """Hold the weights of a block that ComfyUI would bring to the device at every call.

    Each such layer has its parameters replaced by what the core would cast them to, LoRAs
    included, and gets them back whatever happens. Layers DynamicVRAM places, quantised ones and
    those of other packs are left alone: they are brought again for every chunk.
    """
    undos: list[Undo] = []
    try:
        for layer in block.modules():
            if _is_streamed(layer, x):
                undos += _hold(layer, x)
        yield
    finally:
        undo_all(reversed(undos))


def _hold(layer: Any, x: torch.Tensor) -> list[Undo]:
    from comfy import ops

    weight, bias = ops.cast_bias_weight(layer, x)
    own = dict(layer._parameters)
    layer._parameters["weight"] = torch.nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer._parameters["bias"] = torch.nn.Parameter(bias, requires_grad=False)
    return [
        lambda: layer._parameters.update(own),
        override(layer, "weight_function", []),
        override(layer, "bias_function", []),
    ]


def _is_streamed(layer: Any, x: torch.Tensor) -> bool:
    from comfy import ops

    casts = getattr(type(layer), "forward_comfy_cast_weights", None)
    return (
        casts is ops.disable_weight_init.Linear.forward_comfy_cast_weights
        and bool(layer.comfy_cast_weights)
        and not hasattr(layer, "_v")
        and type(layer.weight) is torch.nn.Parameter
        and layer.weight.device != x.device
    )


def _is_taken(patcher: Any, path: str, patched: set[str]) -> bool:
    """Whether another node has patched a block, its forward, or something it is part of."""
    if isinstance(patcher.object_patches.get(path), Chunked):
        return False
    parts = path.split(".")
    above = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return bool(patched & above) or f"{path}.forward" in patched


def _twin(block: Any, size: int) -> Any:
    twin = copy.copy(block)
    base = type(block)
    if not issubclass(base, Chunked):
        known = _classes.get(base)
        if known is None:
            known = _classes[base] = type(f"Chunked{base.__name__}", (Chunked, base), {})
        twin.__class__ = known
    twin.lowtide_chunk = size
    return twin


def _unplug() -> None:
    """A clone is undone by not using it: the original was never touched."""

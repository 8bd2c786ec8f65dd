"""What to ask of the core so that the weights it keeps on the device stay under a cap.

Newer cores keep part of the limit they are given for the layers they stream, as much as those
could need at most. Asked for the cap itself they would leave much of it unused, and for more they
might overshoot. So the core's choice is foreseen here: largest layers first, each resident if it
fits beside those before it and what is kept for streaming.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...float8 import CODES, decode_bytes
from .exact_lora import TEMPORARY
from .float8_layer import Float8Layer, parts_of

_ROUNDING = 512
"""Torch's allocators hand out memory in multiples of this many bytes."""


@dataclass(frozen=True, order=True)
class Layer:
    """One leaf module. Ordered as the core loads: by its cost when streamed, then its size."""

    streamed: int
    size: int
    name: str
    streams: bool


def layers_of(patcher: Any) -> list[Layer]:
    """The leaf modules the core moves one by one, in its order."""
    compute = patcher.get_model_object("manual_cast_dtype") if _casts(patcher) else None
    found = []
    for name, module in patcher.model.named_modules():
        _, parameters, buffers = parts_of(patcher, name, module)
        own = {key: weight for key, weight in parameters.items() if weight is not None}
        streams = hasattr(module, "comfy_cast_weights")
        if any(key not in own for key, _ in module.named_parameters()) or not (own or streams):
            continue
        held = module.state_dict().values()
        if parameters is not module._parameters:
            held = [tensor for tensor in (*own.values(), *buffers.values()) if tensor is not None]
        size = sum(tensor.nbytes for tensor in held)
        extra = 0
        for key, weight in own.items() if streams else ():
            dtype = compute or weight.dtype
            if f"{name}.{key}" in patcher.patches:
                extra += 2 * weight.numel() * dtype.itemsize
            elif weight.dtype != dtype:
                extra += weight.numel() * dtype.itemsize
        found.append(Layer(size + extra, size, name, streams))
    return sorted(found, reverse=True)


def residents(layers: list[Layer], limit: float, streams: int) -> int:
    """Bytes the core would keep on the device under ``limit``, with that many copy streams."""
    return sum(layer.size for layer in _chosen(layers, limit, streams))


def kept_under(patcher: Any, limit: float) -> tuple[frozenset[str], int]:
    """Names and bytes of the layers the core would keep on the device under ``limit``."""
    layers = layers_of(patcher)
    if limit > patcher.model_size():
        found = layers
    elif _reserves(patcher):
        found = list(_chosen(layers, limit, _streams()))
    else:
        by_size = sorted(layers, key=lambda layer: (layer.size, layer.name), reverse=True)
        found = list(_chosen(by_size, limit, None))
    return frozenset(layer.name for layer in found), sum(layer.size for layer in found)


def resident_layers(patcher: Any) -> frozenset[str]:
    """Names of the layers the core has put on the device one by one."""
    found = patcher.model.named_modules()
    return frozenset(name for name, it in found if getattr(it, "comfy_patched_weights", False))


def _chosen(layers: list[Layer], limit: float, streams: int | None) -> Iterator[Layer]:
    """``streams`` is ``None`` for a core that keeps nothing of the limit for what it streams."""
    resident = reserve = 0
    for index, layer in enumerate(layers):
        needed = 0
        if streams is not None:
            ahead = sum(nearby.size for nearby in layers[index + 1 : index + 1 + streams])
            needed = max(reserve, layer.streamed + ahead)
        if resident + layer.size + needed < limit:
            resident += layer.size
            yield layer
        else:
            reserve = needed


def limit_for(patcher: Any, cap: int) -> int:
    """The largest limit under which the core keeps at most ``cap`` bytes resident."""
    if not _reserves(patcher):
        return cap
    layers = layers_of(patcher)
    total = sum(layer.size for layer in layers)
    if cap >= total or cap <= 0:
        return cap
    streams = _streams()
    low, high = cap, cap + total + sum(layer.streamed for layer in layers[: streams + 1])
    while low < high:
        middle = (low + high + 1) // 2
        if residents(layers, middle, streams) <= cap:
            low = middle
        else:
            high = middle - 1
    # At the model's size or above the core would load everything, whatever it reserved.
    return min(low, int(patcher.model_size()))


def streaming_bytes(patcher: Any) -> int:
    """Bytes on the device while the largest streamed leaves compute, LoRA temporaries included."""
    sizes = sorted(
        (streamed(patcher, *found, TEMPORARY) for found in leaves_of(patcher)), reverse=True
    )
    return sum(sizes[: 1 + _streams()])


def hooked_bytes(patcher: Any) -> int:
    """Bytes on the device while a hooked LoRA is added to the largest of its weights there."""
    hooked = {key for patches in patcher.hook_patches.values() for key in patches}
    state = patcher.model.state_dict() if hooked else {}
    sizes = (state[key].numel() for key in hooked if key in state)
    return TEMPORARY * max(sizes, default=0)


def least_bytes(patcher: Any) -> int:
    """Bytes without which not even the largest layer could be streamed, whatever is computed."""
    return max((streamed(patcher, *found, 4) for found in leaves_of(patcher)), default=0)


def padding(patcher: Any) -> int:
    """Bytes the allocator may add to the weights' own by rounding each up."""
    state = patcher.model.state_dict().values()
    return sum(-tensor.nbytes % _ROUNDING for tensor in state)


def streams_all(model: Any) -> bool:
    """Whether every layer with weights can be streamed."""
    return all(
        hasattr(module, "comfy_cast_weights") or not any(True for _ in module.parameters(False))
        for module in model.modules()
    )


def leaves_of(patcher: Any) -> list[tuple[str, Any]]:
    """Name and module of every layer that can be streamed."""
    found = patcher.model.named_modules()
    return [(name, module) for name, module in found if hasattr(module, "comfy_cast_weights")]


def streamed(patcher: Any, name: str, module: Any, temporary: int) -> int:
    """Bytes of one leaf while it computes; ``temporary`` for each patched element."""
    compute = getattr(patcher.model, "manual_cast_dtype", None)
    kind, parameters, _ = parts_of(patcher, name, module)
    size = 0
    for key, weight in parameters.items():
        if weight is None:
            continue
        count = weight.numel()
        is_patched = f"{name}.{key}" in patcher.patches
        if issubclass(kind, Float8Layer) and weight.dtype == CODES:
            decoded = compute or kind.lowtide_dtype
            # What is decoded is patched in place, in a wide type.
            wide = max(decoded.itemsize, temporary if is_patched else 0)
            size += weight.nbytes + count * wide + decode_bytes(count)
            continue
        cast = 0 if compute in (None, weight.dtype) else count * compute.itemsize
        if hasattr(weight, "tensor_shape"):  # quantised by GGUF: unpacked to half precision
            count = math.prod(weight.tensor_shape)
            cast = 2 * count
        size += weight.nbytes + cast + (temporary * count if is_patched else 0)
    return size


def _reserves(patcher: Any) -> bool:
    """Whether the core keeps something of a limit for what it streams."""
    return hasattr(patcher.model, "model_offload_buffer_memory")


def _streams() -> int:
    import comfy.model_management as mm

    return int(getattr(mm, "NUM_STREAMS", 0) or 0)


def _casts(patcher: Any) -> bool:
    held = "manual_cast_dtype" in patcher.object_patches
    return held or hasattr(patcher.model, "manual_cast_dtype")

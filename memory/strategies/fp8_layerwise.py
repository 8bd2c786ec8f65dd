"""FP8 storage: matrices are kept in float8_e4m3fn and cast for the length of their layer's forward.

Norms, embeddings, biases, adapters and what a model's authors mark as delicate keep their type.
FP8 cannot be undone from FP8 bits, so the original values stay on the host until the undo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..units import format_bytes
from .base import Applied, Method, Outcome, Skipped, Undo, undo_all, wrap_method
from .snapshot import Snapshot, tensors_of

NAME = "fp8 storage"
DENOISER_LAYERS = (
    torch.nn.Linear,
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.ConvTranspose1d,
    torch.nn.ConvTranspose2d,
    torch.nn.ConvTranspose3d,
)
ENCODER_LAYERS = (torch.nn.Linear,)
DELICATE = ("pos_embed", "patch_embed", "norm", r"^proj_in$", r"^proj_out$")
# These read the type of a neighbour's weight to choose their own: T5's feed-forward does.
ENCODER_DELICATE = ("norm", "embed", r"\.wo$")
LARGEST = torch.finfo(torch.float8_e4m3fn).max


@dataclass(frozen=True)
class Fp8Layerwise:
    """``compute_dtype`` None = the component's own type."""

    storage_dtype: torch.dtype = torch.float8_e4m3fn
    compute_dtype: torch.dtype | None = None


def apply(
    config: Fp8Layerwise, component: torch.nn.Module, name: str, *, encoder: bool = False
) -> Outcome:
    """Store the matrices of ``component`` in FP8.

    Args:
        encoder: a text encoder: only its linear layers, no embedding.
    """
    from ..adapters import diffusers_casting as casting

    if casting.is_cast(component):
        return Skipped(NAME, name, "its layers are already stored in a smaller type")
    if _is_quantized(component):
        return Skipped(NAME, name, "its weights are quantized already")
    before = getattr(component, "dtype", torch.float32)
    compute = config.compute_dtype or before
    kinds = ENCODER_LAYERS if encoder else DENOISER_LAYERS
    skip = (*(ENCODER_DELICATE if encoder else DELICATE), *casting.own_skip_patterns(component))
    layers = [
        layer
        for layer in casting.castable_layers(
            component, kinds, (*skip, *casting.adapter_layer_names())
        )
        if _fits(layer, _shared(component))
    ]
    if not layers:
        return Skipped(NAME, name, "it has no layer whose weights may be stored in FP8")
    snapshot = Snapshot(component, keep_data=True)
    size = _bytes(component)
    undos: list[Undo] = [snapshot.restore, lambda: casting.remove_casting(component)]
    try:
        for layer in layers:
            casting.cast_layer(layer, config.storage_dtype, compute)
        casting.keep_adapters_precise(component)
        if compute != before:
            _cast_rest(component, compute, config.storage_dtype)
            undos.append(wrap_method(component, "forward", _boundary(compute, before)))
    except BaseException:
        undo_all(reversed(undos))
        raise
    saved = size - _bytes(component)
    detail = (
        f"{len(layers)} layers in {_short(config.storage_dtype)}, computed in {_short(compute)}; "
        f"{format_bytes(saved)} less to hold and move, originals "
        f"({format_bytes(snapshot.host_bytes)}) kept on the host"
    )
    return Applied(NAME, name, detail, lambda: undo_all(reversed(undos)))


def _shared(component: torch.nn.Module) -> set[int]:
    """Parameters of embeddings: a linear layer tied to one keeps its type."""
    return {id(part.weight) for part in component.modules() if isinstance(part, torch.nn.Embedding)}


def _fits(layer: torch.nn.Module, tied: set[int]) -> bool:
    """Whether the layer's weight is a plain float one that FP8 can hold: beyond 448 it is NaN."""
    weight: Any = layer.weight
    if id(weight) in tied or not weight.is_floating_point() or weight.itemsize < 2:
        return False
    return bool(weight.is_meta or weight.detach().abs().amax().float() <= LARGEST)


def _is_quantized(component: torch.nn.Module) -> bool:
    marks = ("is_quantized", "quantization_method", "hf_quantizer")
    return any(getattr(component, mark, None) for mark in marks)


def _cast_rest(component: torch.nn.Module, compute: torch.dtype, storage: torch.dtype) -> None:
    for tensor in tensors_of(component):
        if tensor.is_floating_point() and tensor.dtype != storage:
            tensor.data = tensor.data.to(compute)


def _boundary(compute: torch.dtype, outside: torch.dtype) -> Any:
    """Cast what comes in to the compute type and what goes out to the pipeline's type."""
    from ..adapters.diffusers import convert

    def to(dtype: torch.dtype) -> Any:
        return lambda t: t.to(dtype) if t.is_floating_point() else t

    def around(forward: Method) -> Method:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*convert(args, to(compute)), **convert(kwargs, to(compute)))
            return convert(output, to(outside))

        return run

    return around


def _bytes(component: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(component))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

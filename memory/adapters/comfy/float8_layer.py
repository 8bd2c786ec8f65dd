"""A layer of ComfyUI's that stores its weight in eight bits and decodes it for each call.

The layer stays the object it was; its class and its dictionaries of parameters and buffers are
exchanged, so that whoever holds the layer (hooks, injections, other packs) holds the right one.
``comfy_cast_weights`` is always true for it: that makes the core call
``forward_comfy_cast_weights``, and lets the core stream it.

LoRAs are never written into the codes, where they would be lost in rounding. Their function in
``weight_function`` is applied to the decoded weight, in the type the core computes LoRAs in,
whether the layer is resident or streamed. A patcher that is not ours and bakes weights
gets the patched weight in full precision instead of codes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from ...float8 import CODES, decode, write

if TYPE_CHECKING:
    _Layer = Any
else:
    _Layer = object

SCALE = "lowtide_scale"
PARTS = ("__class__", "_parameters", "_buffers")
"""What of a layer is exchanged."""

Parts = tuple[type, dict[str, Any], dict[str, Any]]


class WeightPatch:
    """What a LoRA, or several, changes of one weight."""

    def __init__(self, key: str, patches: list[Any]) -> None:
        self.key = key
        self.patches = {key: patches}

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight with the patches; it may be changed in place."""
        return patched(self, weight)


class Float8Layer(_Layer):
    """Mixed into a layer's class by ``float8_class``.

    ``weight`` is codes of the shape of the weight, or a weight in full precision where a patcher
    baked one in.
    """

    weight: Any
    lowtide_curve: float
    lowtide_dtype: torch.dtype

    @property
    def comfy_cast_weights(self) -> bool:
        """Always: there is no other way to compute with codes."""
        return True

    @comfy_cast_weights.setter
    def comfy_cast_weights(self, value: bool) -> None:
        """The core sets and resets it as it loads; what the original had stays as it is."""

    def forward_comfy_cast_weights(self, input: torch.Tensor) -> Any:
        """The layer's result for ``input``, in its type."""
        moved = _Moved(self)
        try:
            codes, bias = moved.to(input)
            weight = self._weight(codes, input.dtype)
            del codes
            if isinstance(self, torch.nn.Linear):
                return torch.nn.functional.linear(input, weight, bias)
            return self._conv_forward(input, weight, bias)
        finally:
            moved.close()

    def _weight(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        patches = [function for function in self.weight_function if is_patch(function)]
        others = [function for function in self.weight_function if not is_patch(function)]
        inner = _lora_dtype(codes.device) if patches else dtype
        weight = _Decoder(self)(codes, dtype=inner)
        if weight is codes and self.weight_function:
            weight = weight.to(inner, copy=True)
        for function in patches:
            weight = patched(function, weight)
        weight = weight.to(dtype)
        for function in others:
            weight = function(weight)
        return weight

    @property
    def convert_weight(self) -> Callable[..., torch.Tensor]:
        """What the core calls before it patches or merges a weight it has cast.

        It may do so when the layer has its original weight again, so it takes along what it needs.
        """
        return _Decoder(self)

    def set_weight(
        self,
        weight: torch.Tensor,
        inplace_update: bool = False,
        seed: int | None = None,
        return_weight: bool = False,
        **_: Any,
    ) -> torch.Tensor | None:
        """Take a patched weight from the core, in full precision.

        In place there is room for codes only; they are made under the scale there is, and what
        a patch adds beyond it is cut.
        """
        if return_weight:
            return weight.to(self.lowtide_dtype)
        if inplace_update and self.weight.dtype == CODES:
            scale = self.lowtide_scale.to(self.weight.device)
            write(self.weight.data, scale, weight.to(self.weight.device), self.lowtide_curve)
        elif inplace_update:
            self.weight.data.copy_(weight)
        else:
            with torch.inference_mode(False):
                full = weight.to(self.lowtide_dtype, copy=weight.is_inference())
                self.weight = torch.nn.Parameter(full, requires_grad=False)
        return None

    def _apply(self, fn: Callable[[Any], Any], *args: Any, **kwargs: Any) -> Any:
        """Codes and scales change their device, and never their type."""
        fixed = [self._buffers[SCALE]]
        if self.weight.dtype == CODES:
            fixed.append(self.weight)

        def keeping(tensor: Any) -> Any:
            moved = fn(tensor)
            if moved.dtype != tensor.dtype and any(tensor is one for one in fixed):
                return tensor.to(moved.device)
            return moved

        return super()._apply(keeping, *args, **kwargs)


class _Decoder:
    """The weight that codes stand for: codes as such, or as numbers of another type."""

    def __init__(self, layer: Any) -> None:
        self._coded = layer.weight.dtype == CODES
        self._scale = layer.lowtide_scale
        self._curve = layer.lowtide_curve
        self._dtype = layer.lowtide_dtype

    def __call__(
        self, weight: torch.Tensor, inplace: bool = False, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        if not self._coded:
            return weight
        if dtype is None:
            dtype = self._dtype if weight.dtype == CODES else weight.dtype
        scale = self._scale.to(weight.device, non_blocking=True)
        return decode(weight.to(CODES), scale, self._curve, dtype)


def float8_class(base: type, curve: float, dtype: torch.dtype) -> type:
    """The class of a layer of class ``base`` whose weight of type ``dtype`` is stored in codes."""
    key = (base, curve, dtype)
    known = _classes.get(key)
    if known is None:
        body = {"lowtide_curve": curve, "lowtide_dtype": dtype}
        known = _classes[key] = type(f"Float8{base.__name__}", (Float8Layer, base), body)
    return known


_classes: dict[tuple[type, float, torch.dtype], type] = {}


def parts_of(patcher: Any, name: str, module: Any) -> Parts:
    """Class, parameters and buffers that a module has when this patcher is loaded."""
    own = (type(module), module._parameters, module._buffers)
    keys = [f"{name}.{part}" for part in PARTS]
    for patches in (patcher.object_patches, patcher.object_patches_backup):
        if keys[0] in patches:
            kind, parameters, buffers = (patches[key] for key in keys)
            return kind, parameters, buffers
    return own


def is_patch(function: Any) -> bool:
    """Whether it is a change of the weight, ours or the core's, rather than a wrapper."""
    return hasattr(function, "patches") and hasattr(function, "key")


def patched(patch: Any, weight: torch.Tensor) -> torch.Tensor:
    """The weight with what the function's patches add; it may be changed in place."""
    import comfy.lora

    patches = patch.patches[patch.key]
    # A difference of two models is taken from the weight as the model was loaded.
    first = {patch.key: [(weight.clone(), None)]} if any(map(_is_model, patches)) else None
    changed = comfy.lora.calculate_weight(patches, weight, patch.key, original_weights=first)
    assert isinstance(changed, torch.Tensor)
    return changed


def _is_model(patch: Any) -> bool:
    change = patch[1]
    return isinstance(change, tuple) and bool(change) and change[0] == "model_as_lora"


def _lora_dtype(device: torch.device) -> torch.dtype:
    import comfy.model_management as mm

    chosen = getattr(mm, "lora_compute_dtype", None)
    found = torch.float32 if chosen is None else chosen(device)
    assert isinstance(found, torch.dtype)
    return found


class _Moved:
    """Codes and bias on the input's device by the core's own transfer, until ``close``.

    The core applies a layer's functions as it casts, which is before decoding; so it is shown a
    stand-in without them. The stand-in lets go of the weights, for the core may remember it.
    """

    weight_function: tuple[Any, ...] = ()

    def __init__(self, layer: Any) -> None:
        self.weight = layer.weight
        self.bias = layer.bias
        self.bias_function = layer.bias_function
        self._held: tuple[Any, ...] | None = None

    def to(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        import comfy.ops

        kept = self.weight.dtype
        dtype = kept if kept == CODES else input.dtype
        types = {"dtype": dtype, "bias_dtype": input.dtype}
        if not _streams(comfy.ops.cast_bias_weight):
            weight, bias = comfy.ops.cast_bias_weight(self, input, **types)
            return weight, bias
        self._held = comfy.ops.cast_bias_weight(self, input, offloadable=True, **types)
        return self._held[0], self._held[1]

    def close(self) -> None:
        import comfy.ops

        if self._held is not None:
            comfy.ops.uncast_bias_weight(self, *self._held)
        self.weight = self.bias = self._held = None
        self.bias_function = ()


@cache
def _streams(cast: Callable[..., Any]) -> bool:
    return "offloadable" in inspect.signature(cast).parameters

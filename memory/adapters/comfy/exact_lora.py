"""A LoRA that gives the same weight bit for bit, whether its layer is resident or streamed.

The core adds a LoRA to a resident weight in a wide type and rounds the sum to the type the weight
is stored in; to a streamed weight it adds it in the type the layer computes in. Here the patches
of streamed layers get a generated subclass that computes as for a resident weight, so that an
image does not depend on how much memory there was.

A layer may bring patches of its own: whatever is no plain patch of the core is left alone, and
``patched`` is there for it.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    _Patch = Any
else:
    _Patch = object

TEMPORARY = 12
"""Bytes per element while a LoRA is added: the weight, the product and its scaled copy in fp32."""

_classes: dict[type, type] = {}


class ExactPatch(_Patch):
    """Mixed into the class of the core's patches of streamed weights by ``attach``.

    Holds its layer weakly: the layer holds the patch.
    """

    lowtide_layer: weakref.ref[Any]
    lowtide_name: str

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The patched weight, in the type of ``weight`` (the layer's own copy, changed in place).

        Where that type cannot hold the stored one, the stored weight is fetched again.
        """
        import comfy.model_management as mm

        layer = self.lowtide_layer()
        stored = None if layer is None else getattr(layer, self.lowtide_name, None)
        if stored is None:
            return super().__call__(weight)
        prepared = getattr(self, "prepared_patches", None)
        patches = self.patches[self.key] if prepared is None else prepared
        compute = weight.dtype
        if not _holds(compute, stored.dtype):
            weight = mm.cast_to_device(stored, weight.device, stored.dtype, copy=True)
        found = patched(
            patches, weight, self.key, stored.dtype, convert=self.convert_func, store=self.set_func
        )
        return found.to(dtype=compute)


def patched(
    patches: Any,
    weight: torch.Tensor,
    key: str,
    stored: Any,
    convert: Any = None,
    store: Any = None,
) -> torch.Tensor:
    """What the core would keep on the device for ``weight`` with ``patches``: of type ``stored``.

    ``weight`` holds the stored values and may be changed in place. ``convert`` decodes it first
    and ``store`` encodes the sum, for layers whose stored values are no plain numbers.
    """
    import comfy.float
    import comfy.lora

    wide = _wide(weight.device)
    weight = weight.to(dtype=wide)
    if convert is not None:
        weight = convert(weight, inplace=True)
    weight = comfy.lora.calculate_weight(patches, weight, key)
    if store is not None:
        encoded: torch.Tensor = store(weight, seed=_seed(key), return_weight=True)
        return encoded
    rounded: torch.Tensor = comfy.float.stochastic_rounding(weight, stored, seed=_seed(key))
    return rounded


def attach(patcher: Any) -> int:
    """Make the patches of the patcher's streamed layers exact; returns how many were changed."""
    import comfy.model_patcher as mp

    plain = getattr(mp, "LowVramPatch", None)
    if plain is None or not patcher.patches:
        return 0
    count = 0
    for layer in patcher.model.modules():
        for name in ("weight", "bias"):
            for patch in layer.__dict__.get(f"{name}_function") or ():
                if type(patch) is plain and _is_plain(getattr(layer, name, None)):
                    patch.__class__ = _class_of(plain)
                    patch.lowtide_layer = weakref.ref(layer)
                    patch.lowtide_name = name
                    count += 1
    return count


def _class_of(base: type) -> type:
    known = _classes.get(base)
    if known is None:
        known = _classes[base] = type(f"Exact{base.__name__}", (ExactPatch, base), {})
    return known


def _is_plain(weight: Any) -> bool:
    """Whether a weight is an ordinary tensor, and none of the core's quantised ones."""
    import torch

    return type(weight) in (torch.Tensor, torch.nn.Parameter)


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every value of ``narrow`` is one of ``wide``."""
    import torch

    if wide == narrow:
        return True
    if wide == torch.float32:
        return narrow.is_floating_point and narrow.itemsize <= 2
    return wide in (torch.float16, torch.bfloat16) and narrow.itemsize == 1


def _wide(device: Any) -> Any:
    """The type the core adds a LoRA in; older cores have no choice of it."""
    import comfy.model_management as mm
    import torch

    choose = getattr(mm, "lora_compute_dtype", None)
    return torch.float32 if choose is None else choose(device)


def _seed(key: str) -> int:
    import comfy.model_patcher as mp
    import comfy.utils

    seed = getattr(comfy.utils, "string_to_seed", None) or mp.string_to_seed
    return int(seed(key))

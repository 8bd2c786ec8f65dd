"""LoRAs on layers stored in eight bits, as a patcher loads, unloads and hooks them.

The core writes a LoRA into a resident weight and leaves a function on a streamed one. A layer of
codes gets the function in both cases, so that an image does not depend on what is resident.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...errors import LowtideError
from .float8_layer import PARTS, SCALE, Float8Layer, WeightPatch, is_patch

if TYPE_CHECKING:
    _Patcher = Any
else:
    _Patcher = object

_WEIGHT = ".weight"


class Float8Patches(_Patcher):
    """Mixed into a static patcher's class, beneath ``Budgeted``. Without such layers: the core."""

    def patch_weight_to_device(self, key: str, *args: Any, **kwargs: Any) -> Any:
        """Leave codes as they are; for saving, return the weight with its patches."""
        layer = _layer_of(self.model, key)
        if layer is None:
            return super().patch_weight_to_device(key, *args, **kwargs)
        if kwargs.get("return_weight"):
            return super().patch_weight_to_device(key, *args, **{**kwargs, "force_cast": True})
        return None

    def load(self, *args: Any, **kwargs: Any) -> Any:
        """The core's, then every layer of codes gets its patches.

        Raises:
            LowtideError: weights are to be patched in place, as older cores do for saving.
        """
        if kwargs.get("force_patch_weights") and any(_layers(self.model)):
            raise LowtideError(
                "this MODEL is stored in FP8, and its weights would be saved as codes that only "
                "Lowtide reads. Save the MODEL that goes into Lowtide Optimize Pipeline"
            )
        loaded = super().load(*args, **kwargs)
        fit(self)
        return loaded

    def patch_model(self, *args: Any, **kwargs: Any) -> Any:
        """As ``load``: the core exchanges the layers' classes again even if nothing is loaded."""
        result = super().patch_model(*args, **kwargs)
        fit(self)
        return result

    def partially_unload(self, *args: Any, **kwargs: Any) -> Any:
        """As ``load``."""
        freed = super().partially_unload(*args, **kwargs)
        fit(self)
        return freed

    def patch_hooks(self, hooks: Any) -> Any:
        """The core's for other layers; hooked LoRAs join the layer's own."""
        result = super().patch_hooks(hooks)
        fit(self)
        return result

    def patch_hook_weight_to_device(
        self,
        hooks: Any,
        combined_patches: Any,
        key: str,
        original_weights: Any,
        memory_counter: Any,
    ) -> Any:
        """Leave codes as they are: ``patch_hooks`` sees to them."""
        if _layer_of(self.model, key) is None:
            return super().patch_hook_weight_to_device(
                hooks, combined_patches, key, original_weights, memory_counter
            )
        original_weights.pop(key, None)
        return None

    def get_key_patches(self, *args: Any, **kwargs: Any) -> Any:
        """The core's, for merging. A loaded layer's original weight stands for its codes."""
        found = super().get_key_patches(*args, **kwargs)
        for key in [key for key in found if key.endswith(f".{SCALE}")]:
            del found[key]
        for key, (_, *patches) in list(found.items()):
            held = self.object_patches_backup.get(f"{key.removesuffix(_WEIGHT)}.{PARTS[1]}")
            if held is not None and _layer_of(self.model, key) is not None:
                found[key] = [(held["weight"], _as_it_is), *patches]
        return found

    def model_state_dict_for_saving(self, model: Any = None, prefix: str = "") -> Any:
        """The core's, where it has one, with weights in the place of codes."""
        found = super().model_state_dict_for_saving(model, prefix)
        for key in list(found):
            if key.endswith(f".{SCALE}"):
                del found[key]
            elif _layer_of(self.model, prefix + key) is not None:
                weight = self.patch_weight_to_device(prefix + key, return_weight=True)
                found[key] = weight.to("cpu")
        return found

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
        """The core's; a resident layer's function would otherwise stay, and its LoRA with it."""
        if unpatch_weights:
            for _, layer in _layers(self.model):
                layer.weight_function = _others(layer)
        return super().unpatch_model(device_to, unpatch_weights=unpatch_weights)


def fit(patcher: Any) -> None:
    """Give each layer of codes a function for the patches that the patcher has for it now."""
    hooked = patcher.get_combined_hook_patches(patcher.current_hooks)
    for name, layer in _layers(patcher.model):
        key = f"{name}{_WEIGHT}"
        patches = [*patcher.patches.get(key, ()), *hooked.get(key, ())]
        own = [WeightPatch(key, patches)] if patches else []
        layer.weight_function = [*own, *_others(layer)]


def _as_it_is(weight: Any, **_: Any) -> Any:
    return weight


def _others(layer: Any) -> list[Any]:
    return [function for function in layer.weight_function if not is_patch(function)]


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, Float8Layer):
            yield name, module


def _layer_of(model: Any, key: str) -> Any:
    """The layer of codes whose weight ``key`` names, or ``None``."""
    if not key.endswith(_WEIGHT):
        return None
    import comfy.utils

    layer = comfy.utils.get_attr(model, key.removesuffix(_WEIGHT))
    return layer if isinstance(layer, Float8Layer) else None

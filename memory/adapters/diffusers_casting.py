"""FP8 storage of single layers: diffusers' layerwise casting, made removable.

diffusers' own hook raises when it is removed, casts biases too, and casts back after every
forward. This one keeps its name, so that diffusers and peft find it, removes itself without
touching the weights (their owner restores them), leaves biases alone, and does not cast back what
group offloading drops anyway.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch

from .diffusers import CASTING_HOOK, GROUP_HOOKS, hook_of

ADAPTER_HOOK = "peft_autocast_disable"


def is_cast(module: torch.nn.Module) -> bool:
    """Whether any layer of ``module`` is already stored in another type than it computes in."""
    return any(hook_of(part, CASTING_HOOK) is not None for part in module.modules())


def castable_layers(
    module: torch.nn.Module, kinds: tuple[type[torch.nn.Module], ...], skip: tuple[str, ...]
) -> Iterator[torch.nn.Module]:
    """Layers of ``kinds`` under ``module`` whose dotted name matches no pattern of ``skip``.

    A skipped name takes everything below it along, as in diffusers.
    """
    patterns = [re.compile(pattern) for pattern in skip]
    skipped: list[str] = []
    for name, part in module.named_modules():
        if any(name.startswith(f"{above}.") for above in skipped):
            continue
        if name and any(pattern.search(name) for pattern in patterns):
            skipped.append(name)
        elif isinstance(part, kinds):
            yield part


def adapter_layer_names() -> tuple[str, ...]:
    """Names of the small matrices peft adds; they stay in full precision.

    Nothing can have been added before peft is imported, and it need not be installed.
    """
    if "peft" not in sys.modules:
        return ()
    from peft.tuners.loha.layer import LoHaLayer
    from peft.tuners.lokr.layer import LoKrLayer
    from peft.tuners.lora.layer import LoraLayer

    names = {n for layer in (LoraLayer, LoHaLayer, LoKrLayer) for n in layer.adapter_layer_names}
    return tuple(sorted(rf"(^|\.){re.escape(name)}(\.|$)" for name in names))


def own_skip_patterns(module: torch.nn.Module) -> tuple[str, ...]:
    """Layers the model's authors keep in full precision."""
    patterns: list[str] = []
    for attribute in ("_skip_layerwise_casting_patterns", "_keep_in_fp32_modules"):
        patterns += getattr(module, attribute, None) or ()
    return tuple(patterns)


def cast_layer(layer: torch.nn.Module, storage: torch.dtype, compute: torch.dtype) -> None:
    """Store the matrices of ``layer`` in ``storage``; every forward computes in ``compute``."""
    from diffusers.hooks.hooks import HookRegistry

    hook = _hook_class()(storage, compute, non_blocking=False)
    HookRegistry.check_if_exists_or_initialize(layer).register_hook(hook, CASTING_HOOK)


def keep_adapters_precise(module: torch.nn.Module) -> None:
    """Stop peft from casting the input of adapters to the storage type of the layer they wrap."""
    from diffusers.hooks.layerwise_casting import _disable_peft_input_autocast

    _disable_peft_input_autocast(module)


def remove_casting(module: torch.nn.Module) -> None:
    """Remove the hooks; weights stay as stored until their owner restores them."""
    for part in module.modules():
        registry: Any = vars(part).get("_diffusers_hook")
        for name in (ADAPTER_HOOK, CASTING_HOOK) if registry is not None else ():
            registry.remove_hook(name, recurse=False)


@lru_cache(maxsize=1)
def _hook_class() -> Any:
    from diffusers.hooks.layerwise_casting import LayerwiseCastingHook

    class StoredCasting(LayerwiseCastingHook):
        """Casts the matrices of one layer for its forward."""

        def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
            for matrix in _matrices(module):
                matrix.data = matrix.data.to(self.storage_dtype)
            return module

        def deinitalize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
            return module

        def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            for matrix in _matrices(module):
                matrix.data = matrix.data.to(self.compute_dtype)
            return args, kwargs

        def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
            if not _dropped_after_use(module):
                for matrix in _matrices(module):
                    matrix.data = matrix.data.to(self.storage_dtype)
            return output

    return StoredCasting


def _matrices(layer: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in layer._parameters.values() if p is not None and p.ndim >= 2]


def _dropped_after_use(layer: torch.nn.Module) -> bool:
    """Whether group offloading will point the weights at their host copies after this forward."""
    hook = hook_of(layer, GROUP_HOOKS[0])
    return hook is not None and hook.group.stream is not None and hook.group.offload_leader is layer

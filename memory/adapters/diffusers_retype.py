"""Lets a group-offloaded component change its type.

Streams copy from page-locked twins of the weights, which diffusers makes once. A pipeline that
casts its VAE to float32 for the decode (SDXL in half precision does) casts the weights only, and
the next forward mixes types. Here the twins follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..strategies.base import Method, Undo, undo_all, wrap_method
from .diffusers import GROUP_HOOKS, hook_of

_METHODS = ("to", "float", "half", "bfloat16", "double")


def follow_casts(component: torch.nn.Module) -> Undo:
    """Renew the page-locked twins after every cast of ``component``."""
    undos = [wrap_method(component, name, _following(component)) for name in _METHODS]
    return lambda: undo_all(reversed(undos))


def _following(component: torch.nn.Module) -> Callable[[Method], Method]:
    def around(original: Method) -> Method:
        def cast(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            for group in _groups(component):
                for tensor, twin in list(group.cpu_param_dict.items()):
                    if twin.dtype != tensor.dtype:
                        host = tensor.data.cpu()
                        twin = host if group.low_cpu_mem_usage else host.pin_memory()
                        group.cpu_param_dict[tensor] = tensor.data = twin
            return result

        return cast

    return around


def _groups(component: torch.nn.Module) -> Iterator[Any]:
    for part in component.modules():
        hook = hook_of(part, GROUP_HOOKS[0])
        if hook is not None:
            yield hook.group

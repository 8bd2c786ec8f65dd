"""How components that take turns say that they begin, and stream what does not stay for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from ..strategies.base import Method, Undo, wrap_method
from ..strategies.snapshot import tensors_of
from .diffusers import GROUP_HOOKS, apply_group_offload, hook_of, supports_group_offload
from .diffusers_prefetch import limit_prefetch
from .diffusers_retype import follow_casts

_METHODS = ("encode", "decode")
Begin = Callable[[str], None]


@lru_cache(maxsize=1)
def _hook_class() -> Any:
    from accelerate.hooks import ModelHook

    class TurnHook(ModelHook):
        """On a component: tells pipelines where it computes."""

        def __init__(self, device: torch.device) -> None:
            super().__init__()
            self.execution_device = device

    return TurnHook


def announce(part: torch.nn.Module, device: torch.device, begin: Begin) -> list[Undo]:
    """Call ``begin(method)`` whenever ``part`` begins to work; an autoencoder by its methods.

    What is returned undoes that; accelerate's hook goes with all others of the pipeline.
    """
    from accelerate.hooks import add_hook_to_module

    if not hasattr(part, "_hf_hook") and hook_of(part, GROUP_HOOKS[0]) is None:
        add_hook_to_module(part, _hook_class()(device))
    if not hasattr(part, "decode"):
        # Not by accelerate's hook: diffusers' prefetch takes off what was put around its own.
        hook = part.register_forward_pre_hook(lambda *_: begin("forward"), prepend=True)
        return [hook.remove]
    names = [name for name in _METHODS if hasattr(part, name)]
    return [wrap_method(part, name, _before(begin, name)) for name in names]


def _before(begin: Begin, name: str) -> Callable[[Method], Method]:
    def around(original: Method) -> Method:
        def run(*args: Any, **kwargs: Any) -> Any:
            begin(name)
            return original(*args, **kwargs)

        return run

    return around


def stream_leaves(
    part: torch.nn.Module,
    device: torch.device,
    resident: frozenset[str],
    undos: list[Undo],
    *,
    streams: bool,
) -> list[torch.Tensor]:
    """Let diffusers stream the leaves of ``part`` but those at ``resident``; returns their tensors.

    The part's own tensors are always streamed: the hook that finds the order of the rest is theirs.
    A class that cannot be offloaded in groups is resident as a whole.
    """
    if not supports_group_offload(part):
        return list(tensors_of(part))
    apply_group_offload(
        part,
        device,
        offload_type="leaf_level",
        blocks=1,
        stream=streams,
        record_stream=False,
        low_cpu_mem=False,
    )
    held = [tensor for path in sorted(resident) if path for tensor in _unhook(part, path)]
    if streams:
        undos += [limit_prefetch(part, device), follow_casts(part)]
    return held


def _unhook(part: torch.nn.Module, path: str) -> list[torch.Tensor]:
    """Take the groups' hooks off one module; the tensors they would have moved."""
    module = part.get_submodule(path)
    hook = hook_of(module, GROUP_HOOKS[0])
    if hook is None:
        return []
    group = hook.group
    tensors = [t for one in group.modules for t in (*one.parameters(), *one.buffers())]
    tensors += [*group.parameters, *group.buffers]
    registry: Any = vars(module)["_diffusers_hook"]
    for name in GROUP_HOOKS[:2]:
        registry.remove_hook(name, recurse=False)
    group.cpu_param_dict.clear()
    order = hook_of(part, GROUP_HOOKS[2])
    if order is not None:
        order._layer_execution_tracker_module_names.discard(path)
    return tensors

"""diffusers pipelines: what they are made of, what already moves them, and group offloading.

The only file, with its neighbours ``diffusers_casting``, ``diffusers_prefetch`` and
``diffusers_retype``, that knows diffusers' and accelerate's hooks. Both libraries are imported on
first use.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import TargetError

GROUP_HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")
CASTING_HOOK = "layerwise_casting"


def require_pipeline(target: Any) -> Any:
    """``target``, if it is a diffusers pipeline that can be moved.

    Raises:
        TargetError: it is none, or its parts are spread over devices by a device map.
    """
    import diffusers

    base: Any = diffusers.DiffusionPipeline
    if not isinstance(target, base):
        raise TargetError(
            f"{type(target).__name__} is no diffusers pipeline; hand in what "
            "DiffusionPipeline.from_pretrained(...) returned"
        )
    pipe: Any = target
    if pipe._is_pipeline_device_mapped():
        raise TargetError(
            f"the parts of this {type(target).__name__} are spread by a device map; call "
            "pipe.reset_device_map() first, or load it without `device_map`"
        )
    return target


def modules_of(pipe: Any) -> dict[str, torch.nn.Module]:
    """The pipeline's components that hold weights, by name, each object once."""
    found: dict[str, torch.nn.Module] = {}
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and all(part is not one for one in found.values()):
            found[name] = part
    return found


def declares(pipe: Any, component: str) -> bool:
    """Whether the pipeline's class has a component of that name, loaded or not."""
    return component in inspect.signature(type(pipe).__init__).parameters


@dataclass(frozen=True)
class Existing:
    """An offload the user had enabled: ``component``, ``sequential`` or ``group``."""

    kind: str
    device: torch.device
    configs: dict[str, Any]


def existing_offload(pipe: Any) -> Existing | None:
    """The offload in force on the pipeline, if any."""
    from accelerate.hooks import AlignDevicesHook, CpuOffload

    configs: dict[str, Any] = {}
    for name, module in modules_of(pipe).items():
        config = _group_config(module)
        if config is not None:
            configs[name] = config
    if configs:
        return Existing("group", next(iter(configs.values())).onload_device, configs)
    for module in modules_of(pipe).values():
        for hook in _accelerate_hooks(module):
            if isinstance(hook, CpuOffload):
                return Existing("component", torch.device(hook.execution_device), {})
            if isinstance(hook, AlignDevicesHook) and hook.offload:
                return Existing("sequential", torch.device(hook.execution_device), {})
    return None


def remove_offload(pipe: Any, parts: Iterable[torch.nn.Module] | None = None) -> None:
    """Take away every offload hook on ``parts``, whoever put it there; None = the pipeline's own.

    Those that diffusers renews after each run go too, whichever component they are on by now.
    """
    from accelerate.hooks import remove_hook_from_module

    for hook in component_hooks(pipe):
        hook.remove()
    pipe._all_hooks = []
    for module in modules_of(pipe).values() if parts is None else parts:
        if hasattr(module, "_hf_hook"):
            remove_hook_from_module(module, recurse=True)
        remove_group_offload(module)


def component_hooks(pipe: Any) -> list[Any]:
    """accelerate's hooks, in their order, that take turns under component offload; made anew by
    diffusers at the end of every call."""
    return list(vars(pipe).get("_all_hooks") or ())


def restore_offload(pipe: Any, existing: Existing) -> None:
    """Enable again what :func:`existing_offload` had found."""
    if existing.kind == "component":
        pipe.enable_model_cpu_offload(device=existing.device)
    elif existing.kind == "sequential":
        pipe.enable_sequential_cpu_offload(device=existing.device)
    else:
        from diffusers.hooks.group_offloading import _apply_group_offloading

        parts = modules_of(pipe)
        for name, config in existing.configs.items():
            if name in parts:
                _apply_group_offloading(parts[name], config)


def _accelerate_hooks(module: torch.nn.Module) -> Iterator[Any]:
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        if hook is not None:
            yield from getattr(hook, "hooks", (hook,))


def _group_config(module: torch.nn.Module) -> Any | None:
    for part in module.modules():
        hook = hook_of(part, GROUP_HOOKS[0])
        if hook is not None:
            return hook.config
    return None


def hook_of(module: torch.nn.Module, name: str) -> Any | None:
    """diffusers' hook of that name on this very module."""
    registry = vars(module).get("_diffusers_hook")
    return None if registry is None else registry.get_hook(name)


def supports_group_offload(module: torch.nn.Module) -> bool:
    """Whether diffusers can group-offload this component; transformers' models always can."""
    return bool(getattr(module, "_supports_group_offloading", True))


def apply_group_offload(
    module: torch.nn.Module,
    device: torch.device,
    *,
    offload_type: str,
    blocks: int,
    stream: bool,
    record_stream: bool,
    low_cpu_mem: bool,
) -> None:
    """Let diffusers stream the groups of ``module`` to ``device`` and drop them after use."""
    from diffusers.hooks.group_offloading import apply_group_offloading

    apply_group_offloading(
        module,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type=offload_type,
        num_blocks_per_group=blocks if offload_type == "block_level" else None,
        non_blocking=stream,
        use_stream=stream,
        record_stream=record_stream,
        low_cpu_mem_usage=low_cpu_mem,
    )


def remove_group_offload(module: torch.nn.Module) -> None:
    """Remove diffusers' group hooks; the weights stay where the last forward left them.

    Groups and hooks refer to each other: their host copies, page-locked and as large as the
    weights, would wait for a full collection, so they are dropped here.
    """
    for part in module.modules():
        hook = hook_of(part, GROUP_HOOKS[0])
        registry: Any = vars(part).get("_diffusers_hook")
        for name in GROUP_HOOKS if registry is not None else ():
            registry.remove_hook(name, recurse=False)
        if hook is not None:
            hook.group.cpu_param_dict.clear()


def offload_leaves(module: torch.nn.Module, device: torch.device) -> None:
    """Let accelerate bring each leaf of one component to ``device`` for its forward."""
    from accelerate import cpu_offload

    module.to("cpu")
    cpu_offload(module, device, offload_buffers=len(module._parameters) > 0)


def feed_forwards(module: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """(name, module) of the feed-forward layers: the widest activations of a transformer block."""
    from diffusers.models.attention import FeedForward

    return [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, FeedForward) or type(part).__name__.endswith("FeedForward")
    ]


def attention_layers(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Modules whose attention is computed by an exchangeable processor."""
    return [
        part
        for part in module.modules()
        if hasattr(part, "set_processor") and getattr(part, "processor", None) is not None
    ]


def fused_processor() -> Any:
    """diffusers' attention by torch's fused kernel, for its ``Attention`` layers."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    return AttnProcessor2_0()


def xformers_available() -> bool:
    """Whether diffusers finds xformers."""
    from diffusers.utils.import_utils import is_xformers_available

    return bool(is_xformers_available())


def convert(data: Any, change: Any) -> Any:
    """``change(tensor)`` for every tensor in nested tuples, lists, dicts and model outputs."""
    from accelerate.utils.operations import recursively_apply

    return recursively_apply(change, data)

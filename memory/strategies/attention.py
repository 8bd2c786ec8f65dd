"""Attention: the kernel it is computed by.

``auto`` keeps torch's fused kernel where the device has one, and slices where it has none: a
fused kernel never holds the score matrix, so slicing on top of it only costs time. diffusers has
neither ComfyUI's sub-quadratic nor its split attention: both are for little memory, and so is
slicing, which takes their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError
from .base import Applied, Outcome, Skipped, Undo

NAME = "attention"
_STOCK = {"AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor"}
"""diffusers' exchangeable processors; others (IP-Adapter, added keys, a user's) mean more."""
_SLICED = ("sliced", "sub-quadratic", "split")
_MATH = 0
"""torch's number of the unfused kernel (``SDPBackend.MATH``)."""


@dataclass(frozen=True)
class Attention:
    """``kind`` is a configuration's ``attention``; ``slice_size`` heads at once, auto or max."""

    kind: str
    device: torch.device
    slice_size: int | str = "auto"


def has_fused_kernel(device: torch.device, dtype: torch.dtype = torch.float16) -> bool:
    """Whether torch computes attention on ``device`` without holding the scores.

    Apple's is not counted: its kernel holds them.
    """
    if device.type == "mps":
        return False
    probe = torch.empty((1, 1, 8, 64), dtype=dtype, device=device)
    return bool(torch._fused_sdp_choice(probe, probe, probe) != _MATH)


def apply(config: Attention, component: torch.nn.Module, name: str) -> Outcome:
    """Choose the kernel of every attention layer of ``component``.

    Raises:
        ConfigError: xformers was asked for and is not installed; a slice larger than the heads.
    """
    from ..adapters.diffusers import attention_layers, xformers_available

    kind = config.kind
    if kind == "xformers" and not xformers_available():
        raise ConfigError(
            "attention='xformers', but xformers is not installed; install the build made for this "
            "torch (pip install xformers), or set attention='auto'"
        )
    layers = attention_layers(component)
    if not layers:
        return Skipped(NAME, name, "it has no exchangeable attention")
    if kind == "auto":
        if has_fused_kernel(config.device, _dtype(component, config.device)):
            return Skipped(NAME, name, "torch's fused kernel is in use: nothing to save")
        kind = "sliced"
    if kind in _SLICED and not hasattr(component, "set_attention_slice"):
        return Skipped(NAME, name, f"its class has no {kind} attention")
    own = sorted({_kind(layer) for layer in layers} - _STOCK)
    if own:
        return Skipped(NAME, name, f"it has processors of its own ({', '.join(own)}): they stay")
    before = [(layer, _processor(layer)) for layer in layers]
    undo = _restore(before)
    try:
        if kind in _SLICED:
            outcome = _slice(config, component, name, undo)
        elif kind == "xformers":
            outcome = _xformers(component, name, undo)
        else:
            outcome = _fused(layers, name, undo)
    except BaseException:
        undo()
        raise
    return outcome


def _slice(config: Attention, component: Any, name: str, undo: Undo) -> Outcome:
    try:
        component.set_attention_slice(config.slice_size)
    except ValueError as error:
        raise ConfigError(
            f"attention_slice_size={config.slice_size!r} does not suit {name}: {error}; "
            "give fewer heads, or 'auto'"
        ) from error
    instead = "" if config.kind in ("auto", "sliced") else f", as diffusers has no {config.kind}"
    return Applied(NAME, name, f"sliced, {config.slice_size} heads at once{instead}", undo)


def _xformers(component: Any, name: str, undo: Undo) -> Outcome:
    if not hasattr(component, "enable_xformers_memory_efficient_attention"):
        return Skipped(NAME, name, "its class does not take xformers")
    component.enable_xformers_memory_efficient_attention()
    return Applied(NAME, name, "xformers' memory-efficient kernel", undo)


def _fused(layers: list[torch.nn.Module], name: str, undo: Undo) -> Outcome:
    from ..adapters.diffusers import fused_processor

    changed = 0
    for layer in layers:
        if "Sliced" in type(_processor(layer)).__name__ or "XFormers" in _kind(layer):
            layer.set_processor(fused_processor())  # type: ignore[operator]
            changed += 1
    if not changed:
        return Skipped(NAME, name, "torch's fused kernel is in use already")
    return Applied(NAME, name, f"torch's fused kernel in {changed} layers", undo)


def _kind(layer: torch.nn.Module) -> str:
    return type(_processor(layer)).__name__


def _processor(layer: Any) -> Any:
    return layer.processor


def _restore(before: list[tuple[Any, Any]]) -> Undo:
    def undo() -> None:
        for layer, processor in before:
            if layer.processor is not processor:
                layer.set_processor(processor)

    return undo


def _dtype(component: Any, device: torch.device) -> torch.dtype:
    dtype = getattr(component, "dtype", torch.float16)
    return dtype if isinstance(dtype, torch.dtype) else torch.float16

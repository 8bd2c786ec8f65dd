"""Lets a pipeline change its structure or be saved while it is optimised: LoRAs, fusions, files.

Hooks on weights and a change of the modules that own them don't go together: diffusers re-enables
an offload on its default device, and peft gives an adapter the type of the layer it joins, which
would be FP8. A file would hold FP8 too, or lack what is on the meta device. So the methods below
run on the plain pipeline: Lowtide undoes itself, lets the method work, and applies itself again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from .base import Method, Undo, undo_all, wrap_method

METHODS = (
    "load_lora_weights",
    "unload_lora_weights",
    "fuse_lora",
    "unfuse_lora",
    "delete_adapters",
    "load_textual_inversion",
    "unload_textual_inversion",
    "load_ip_adapter",
    "unload_ip_adapter",
    "fuse_qkv_projections",
    "unfuse_qkv_projections",
    "save_pretrained",
    "save_lora_weights",
)
PART_METHODS = (
    "add_adapter",
    "load_adapter",
    "load_lora_adapter",
    "load_attn_procs",
    "delete_adapter",
    "delete_adapters",
    "unload_lora",
    "fuse_lora",
    "unfuse_lora",
    "fuse_qkv_projections",
    "unfuse_qkv_projections",
    "resize_token_embeddings",
    "save_pretrained",
    "save_lora_adapter",
    "save_attn_procs",
)
"""Of components, diffusers' and transformers'. ``set_attn_processor`` is not among them: some
pipelines call it in every run."""

Suspended = Callable[[str], AbstractContextManager[None]]


def guard(pipe: Any, suspended: Suspended) -> Undo:
    """Run the pipeline's structure-changing methods inside ``suspended(name)``."""
    return _guard(pipe, METHODS, suspended)


def guard_part(part: torch.nn.Module, suspended: Suspended) -> Undo:
    """The same for one of its components, which may be changed directly."""
    return _guard(part, PART_METHODS, suspended)


def _guard(owner: Any, methods: tuple[str, ...], suspended: Suspended) -> Undo:
    undos = [
        wrap_method(owner, name, _plain(name, suspended))
        for name in methods
        if hasattr(owner, name)
    ]
    return lambda: undo_all(reversed(undos))


def _plain(name: str, suspended: Suspended) -> Callable[[Method], Method]:
    def around(original: Method) -> Method:
        def run(*args: Any, **kwargs: Any) -> Any:
            with suspended(name):
                return original(*args, **kwargs)

        return run

    return around

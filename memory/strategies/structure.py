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

Suspended = Callable[[str], AbstractContextManager[None]]


def guard(pipe: Any, suspended: Suspended) -> Undo:
    """Run the pipeline's structure-changing methods inside ``suspended(name)``."""
    undos = [
        wrap_method(pipe, name, _plain(name, suspended)) for name in METHODS if hasattr(pipe, name)
    ]
    return lambda: undo_all(reversed(undos))


def _plain(name: str, suspended: Suspended) -> Callable[[Method], Method]:
    def around(original: Method) -> Method:
        def run(*args: Any, **kwargs: Any) -> Any:
            with suspended(name):
                return original(*args, **kwargs)

        return run

    return around

"""Lowtide inside ComfyUI. Everything here works on a ComfyUI that is already running.

Nothing imports ComfyUI before it is known to be loaded: importing it parses the command line and
picks a device, which is its business alone.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ...errors import LowtideError

if TYPE_CHECKING:
    import torch


def present() -> bool:
    """Whether this process is a ComfyUI."""
    return "comfy.model_management" in sys.modules


def require(what: str) -> None:
    """Raise unless ComfyUI is here. ``what`` begins the sentence, for example a node's name."""
    if not present():
        raise LowtideError(
            f"{what} works on ComfyUI's own models, and this process is no ComfyUI. Run the graph "
            f"in ComfyUI, or use Lowtide's diffusers nodes, which run anywhere."
        )


def device() -> torch.device | None:
    """The device ComfyUI computes on, or ``None`` outside ComfyUI."""
    if not present():
        return None
    import comfy.model_management as mm

    return mm.get_torch_device()


def outside_torch() -> int:
    """Bytes of ComfyUI's models on its device that torch does not count: DynamicVRAM's pages."""
    if not present():
        return 0
    from . import dynamic

    return dynamic.pages(device())

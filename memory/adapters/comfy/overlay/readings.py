"""What devices and host hold at one moment, as the overlay shows it.

The same counters as the VRAM Monitor's, but DynamicVRAM's pages stand beside torch's figures and
not in them, as they do beside a run's peaks. A device that was never used is not asked: to answer
it would have to make a context, which takes memory.
"""

from __future__ import annotations

from typing import Any

import torch

from .... import backend
from ....adapters import comfy
from ....device import snapshot
from ....host import host_snapshot
from .. import dynamic, executor
from . import tidy

_peaks: dict[str, int] = {}


def devices() -> list[dict[str, Any]]:
    """ComfyUI's device, and others it has loaded models on; bytes, ``None`` where unknown."""
    main = backend.device_of(comfy.device())
    found = [main, *(device for device in _of_models() if device != main)]
    return [_device(device, device == main) for device in found]


def host() -> dict[str, int]:
    """Bytes of RAM: total, available to all, and this process's."""
    found = host_snapshot()
    return {"total": found.total, "available": found.available, "rss": found.process_rss}


def note_peak(device: str, peak: int | None) -> None:
    """Take in the highest allocation somebody else has seen on a device."""
    if peak is not None:
        _peaks[device] = max(peak, _peaks.get(device, 0))


def forget_peaks() -> None:
    """Know no peak any more."""
    _peaks.clear()


def _device(device: torch.device, main: bool) -> dict[str, Any]:
    if not backend.is_initialized(device):
        names = ("allocated", "reserved", "free", "total", "others", "pages", "peak")
        return {"id": str(device), "name": device.type, **dict.fromkeys(names)}
    pages, found = dynamic.pages(device), snapshot(device)
    note_peak(found.device, backend.peak_allocated(device))
    if main:
        note_peak(found.device, executor.peak())
    return {
        "id": found.device,
        "name": tidy.name(found.name),
        "allocated": found.allocated,
        "reserved": found.reserved,
        "free": found.free,
        "total": found.total,
        "others": found.counting(pages).reserved_by_others,
        "pages": pages,
        "peak": _peaks.get(found.device),
    }


def _of_models() -> list[torch.device]:
    import comfy.model_management as mm

    found = {entry.device: None for entry in list(mm.current_loaded_models)}
    return [backend.device_of(device) for device in found if device.type in backend.ACCELERATORS]

"""The VRAM Monitor's figures: what device and host hold at one moment."""

from __future__ import annotations

from typing import Any

from . import backend, verified
from .adapters import comfy
from .device import snapshot
from .host import host_snapshot
from .units import format_bytes


def read() -> tuple[str, dict[str, Any]]:
    """Text, and figures in bytes; a reading nobody can give is ``None``.

    Figures: device, allocated, reserved, free, total, reserved_by_others, pages (what allocated
    and reserved have of DynamicVRAM's pages, which torch does not count), peak (highest allocated
    since the prompt began, without pages; outside ComfyUI since torch's counters were reset),
    host_total, host_available, host_rss, models, a list of name, device, on_device and size, and
    runs: what the models that have run were predicted to need and needed, stage by stage.
    """
    pages = comfy.outside_torch()
    found = snapshot(comfy.device()).counting(pages)
    host = host_snapshot()
    figures: dict[str, Any] = {
        "device": found.device,
        "allocated": found.allocated,
        "reserved": found.reserved,
        "free": found.free,
        "total": found.total,
        "reserved_by_others": found.reserved_by_others,
        "pages": pages,
        "peak": _peak(found.device),
        "host_total": host.total,
        "host_available": host.available,
        "host_rss": host.process_rss,
        "models": _models(found.device),
        "runs": [run.to_dict() for run in verified.runs()],
    }
    return _text(figures, found.name), figures


def _peak(device: str) -> int | None:
    if comfy.present():
        from .adapters.comfy import executor

        return executor.peak()
    return backend.peak_allocated(backend.device_of(device))


def _models(device: str) -> list[dict[str, Any]]:
    from .handles import live_pipelines

    models: list[dict[str, Any]] = []
    if comfy.present():
        from .adapters.comfy.models import loaded_models

        models += [
            {"name": m.name, "device": m.device, "on_device": m.on_device, "size": m.size}
            for m in loaded_models()
        ]
    where = backend.device_of(device)
    for loaded in live_pipelines():
        models.append(
            {
                "name": loaded.name,
                "device": device,
                "on_device": loaded.on_device(where),
                "size": loaded.size,
            }
        )
    return models


def _text(figures: dict[str, Any], name: str) -> str:
    def size(key: str) -> str:
        return format_bytes(figures[key])

    lines = [
        f"{figures['device']} ({name})",
        f"  allocated {size('allocated')}, reserved {size('reserved')}, "
        f"free {size('free')} of {size('total')}",
        f"  peak so far {size('peak')}"
        + (f", beside DynamicVRAM's pages, now {size('pages')}" if figures["pages"] else ""),
        f"Host: {size('host_rss')} used by this process, "
        f"{size('host_available')} free of {size('host_total')}",
    ]
    models = figures["models"]
    lines.append("Loaded models:" if models else "Loaded models: none")
    lines += [
        f"  {m['name']}: {format_bytes(m['on_device'])} of {format_bytes(m['size'])} "
        f"on {m['device']}"
        for m in models
    ]
    told = verified.of_runs(verified.runs())
    lines += ["Predicted and measured:", *told] if told else []
    return "\n".join(lines)

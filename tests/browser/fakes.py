"""States as the server might tell them, for what a simulated accelerator never shows."""

from __future__ import annotations

from typing import Any

GB = 1 << 30
HOSTILE = [
    "<img src=x onerror=window.hacked=1>",
    "<script>window.hacked=1</script>" + "A" * 10_000,
    "\u202egnp.exe\u202c \u0627\u0644\u0646\u0645\u0648\u0630\u062c",
    "\U0001f469\u200d\U0001f680\U0001f30a.safetensors",
    "null\x00byte\x1b[31m\nsecond line",
    "{{constructor.constructor('window.hacked=1')()}} ${window.hacked=1} {name} @:lowtide.chip",
    "'\"><svg/onload=window.hacked=1>",
]


def device(
    name: str = "npu:0", used: float = 3.0, total: float = 8.0, **more: Any
) -> dict[str, Any]:
    """A device with ``used`` GB allocated, half a GB cached and one GB of others."""
    allocated = int(used * GB)
    return {
        "id": name,
        "name": "simulated",
        "allocated": allocated,
        "reserved": allocated + GB // 2,
        "free": int(total * GB) - allocated - GB // 2 - GB,
        "total": int(total * GB),
        "others": GB,
        "pages": 0,
        "peak": allocated + GB,
        **more,
    }


def model(name: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"id of {name[:40]}",
        "name": name,
        "kind": "model",
        "device": "npu:0",
        "size": 4 * GB,
        "on_device": GB,
        "streamed": 3 * GB,
        "fp8": 0,
        "pinned": None,
        "on_host": 3 * GB,
        "last_used": 1_790_000_000.0,
        "can_unload": True,
        **more,
    }


def span(node: str, class_type: str, started: float = 0.0, **more: Any) -> dict[str, Any]:
    return {
        "node": node,
        "class_type": class_type,
        "parent": None,
        "started": started,
        "seconds": 1.0,
        "peak_allocated": GB,
        "peak_reserved": 2 * GB,
        "before": 0,
        "after": GB // 2,
        "device_peak": 3 * GB,
        "host_peak": 5 * GB,
        "status": "done",
        "steps": [],
        "to_device": GB,
        "from_device": 0,
        "pages_peak": None,
        **more,
    }


def run(name: str, nodes: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    peaks = [node["peak_allocated"] or 0 for node in nodes]
    return {
        "run": name,
        "device": "npu:0",
        "started_at": 1_790_000_000.0,
        "seconds": float(len(nodes)),
        "status": "done",
        "peak_allocated": max(peaks, default=0),
        "peak_reserved": 2 * GB,
        "device_peak": 3 * GB,
        "host_peak": 5 * GB,
        "pages_peak": None,
        "to_device": GB,
        "from_device": 0,
        "after_allocated": 0,
        "after_reserved": 0,
        "cached": [],
        "nodes": nodes,
        "releases": [],
        "attempts": [],
        "samples": [[i / 10, i * GB // 20, i * GB // 15, i * GB // 10] for i in range(20)],
        **more,
    }


def receipt(text: str = "Released", **more: Any) -> dict[str, Any]:
    reading = {"allocated": GB, "reserved": GB, "free": 7 * GB, "host_rss": 2 * GB}
    return {
        "at": 1_790_000_000.0,
        "by": "user",
        "text": text,
        "device": "npu:0",
        "before": reading,
        "after": {**reading, "allocated": 0, "reserved": 0},
        "by_owner": {"SDXL": GB},
        "remaining": 0,
        "seconds": 0.04,
        "collect_seconds": 0.03,
        "trimmed": None,
        "errors": [],
        "holders": [],
        "host_holders": [],
        "freed": GB,
        "freed_host": 0,
        **more,
    }


def state(**more: Any) -> dict[str, Any]:
    """A calm server with one device; keywords take the place of its parts."""
    return {
        "boot": "fake",
        "seq": 0,
        "running": False,
        "devices": [device()],
        "host": {"total": 32 * GB, "available": 20 * GB, "rss": 2 * GB},
        "models": [],
        "runs": [],
        "receipts": [],
        "next": {"level": None, "budget_gb": None},
        "history": None,
        **more,
    }

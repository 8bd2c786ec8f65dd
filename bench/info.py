"""What devices there are, and what AUTO would choose on each."""

from __future__ import annotations

from typing import Any

from ..memory import backend
from ..memory.device import host_snapshot, snapshot
from ..memory.levels import MemoryOptimizationConfig
from ..memory.units import format_bytes


def devices() -> list[dict[str, Any]]:
    """A reading of every device with the level AUTO would choose there, the CPU last."""
    found = []
    for kind in [*backend.available_types(), "cpu"]:
        for index in range(backend.device_count(kind)):
            reading = snapshot(f"{kind}:{index}")
            chosen = MemoryOptimizationConfig.auto(reading)
            found.append(
                {
                    **reading.to_dict(),
                    "auto": chosen.level.value,
                    "cpu_mode": chosen.cpu_mode,
                    "reason": chosen.reason,
                }
            )
    return found


def text() -> str:
    """The readings for a person."""
    host = host_snapshot()
    lines = [
        f"host: {format_bytes(host.available)} of {format_bytes(host.total)} RAM available, "
        f"{format_bytes(host.swap_used)} of {format_bytes(host.swap_total)} swap used"
    ]
    for device in devices():
        lines.append(
            f"{device['device']}: {device['name']}, {format_bytes(device['free'])} of "
            f"{format_bytes(device['total'])} free"
        )
        lines.append(f"  auto would choose {device['auto']}: {device['reason']}")
    return "\n".join(lines)

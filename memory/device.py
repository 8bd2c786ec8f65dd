"""What a device has and who holds it: the probe every decision begins with.

NVML answers for NVIDIA cards where it can, because it needs no CUDA context; torch's
``mem_get_info`` answers else. Unified memory is settled here and nowhere else: ``total`` is then
what the device may use, not what the machine has.
"""

from __future__ import annotations

import platform
import subprocess
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch

from . import backend, nvml
from .host import HostSnapshot, host_snapshot

__all__ = ["DeviceSnapshot", "HostSnapshot", "host_snapshot", "snapshot"]

UNIFIED_SHARE = 0.75
"""Part of the RAM an integrated GPU is counted with where its driver names no limit; the rest is
the system's. Metal recommends about the same share itself."""


@dataclass(frozen=True)
class DeviceSnapshot:
    """One reading of one device, in bytes; ``None`` is unknown, never zero.

    Attributes:
        device: for example ``cuda:0``.
        kind: ``cuda``, ``rocm``, ``xpu``, ``npu``, ``mps`` or ``cpu``.
        name: as the driver calls it.
        total: memory the device may use. Unified: its share of the RAM. CPU: the host's RAM.
        free: what any process could still take of it.
        allocated: live tensors of this process.
        reserved: what torch's allocator holds for this process, its cache included.
        reserved_by_others: the rest of what is taken: other processes, the driver, and this
            process's own device context (some hundred MB on CUDA). ``None`` for unified memory,
            where taken RAM can't be told apart.
        unified: whether device and host share one memory.
    """

    device: str
    kind: str
    name: str
    total: int | None
    free: int | None
    allocated: int | None
    reserved: int | None
    reserved_by_others: int | None
    unified: bool | None

    def to_dict(self) -> dict[str, Any]:
        """The reading as plain JSON values."""
        return asdict(self)

    def counting(self, outside: int) -> DeviceSnapshot:
        """The same reading with ``outside`` bytes this process holds beside torch's allocator."""
        if not outside:
            return self
        others = self.reserved_by_others
        return replace(
            self,
            allocated=None if self.allocated is None else self.allocated + outside,
            reserved=None if self.reserved is None else self.reserved + outside,
            reserved_by_others=None if others is None else max(0, others - outside),
        )


def snapshot(device: str | torch.device | None = None) -> DeviceSnapshot:
    """Read a device; ``None`` is the best one available.

    Raises:
        DeviceError: there is no such device.
    """
    where = backend.device_of(device)
    if where.type == "cpu":
        return _cpu()
    if where.type == "mps":
        return _mps(where)
    return _accelerator(where)


def _cpu() -> DeviceSnapshot:
    host = host_snapshot()
    return DeviceSnapshot(
        device="cpu",
        kind="cpu",
        name=platform.processor() or platform.machine() or "CPU",
        total=host.total,
        free=host.available,
        allocated=None,
        reserved=None,
        reserved_by_others=None,
        unified=True,
    )


def _mps(device: torch.device) -> DeviceSnapshot:
    reserved = backend.reserved(device)
    recommended = getattr(torch.mps, "recommended_max_memory", None)
    host = host_snapshot()
    total = int(recommended()) if recommended is not None else int(host.total * UNIFIED_SHARE)
    free = min(host.available, total - reserved) if reserved is not None else None
    return DeviceSnapshot(
        device=str(device),
        kind="mps",
        name=_chip(),
        total=total,
        free=None if free is None else max(0, free),
        allocated=backend.allocated(device),
        reserved=reserved,
        reserved_by_others=None,
        unified=True,
    )


@cache
def _chip() -> str:
    """Apple's name of the chip, such as ``Apple M2 Max``; Python only knows its architecture."""
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        told = ""
    return told.strip() or platform.processor() or "Apple GPU"


def _accelerator(device: torch.device) -> DeviceSnapshot:
    properties = _properties(device)
    kind = "rocm" if device.type == "cuda" and torch.version.hip else device.type
    unified = _unified(properties)
    free, total = _memory(device, kind, properties)
    allocated, reserved = backend.allocated(device), backend.reserved(device)
    others = None
    if unified:
        host = host_snapshot()
        share = int(host.total * UNIFIED_SHARE)
        total = share if total is None else min(total, share)
        # The driver's figure leaves out what the page cache would give back.
        free = max(0, min(total - (reserved or 0), host.available))
    elif total is not None and free is not None and reserved is not None:
        # The driver and the allocator are read one after the other: a race, not a debt.
        others = max(0, total - free - reserved)
    return DeviceSnapshot(
        device=str(device),
        kind=kind,
        name=str(getattr(properties, "name", None) or device.type),
        total=total,
        free=free,
        allocated=allocated,
        reserved=reserved,
        reserved_by_others=others,
        unified=unified,
    )


def _memory(device: torch.device, kind: str, properties: Any) -> tuple[int | None, int | None]:
    """(free, total): NVML for NVIDIA, else torch, else the total from the properties alone."""
    if kind == "cuda":
        reading = nvml.read(properties)
        if reading is not None:
            return reading.free, reading.total
    info = backend.mem_get_info(device)
    if info is not None:
        return info
    total = getattr(properties, "total_memory", None)
    return None, None if total is None else int(total)


def _properties(device: torch.device) -> Any | None:
    query = getattr(backend.module_of(device), "get_device_properties", None)
    return None if query is None else query(device)


def _unified(properties: Any) -> bool | None:
    """Whether an accelerator shares the host's memory; ``None`` where its driver is silent."""
    for name in ("is_integrated", "is_integrated_gpu"):
        flag = getattr(properties, name, None)
        if flag is not None:
            return bool(flag)
    return None

"""What NVIDIA's management library says about a card, without creating a CUDA context.

A card is matched by UUID or PCI address, never by index: NVML counts every card in PCI order,
CUDA only the visible ones, by default fastest first. A reading whose total is far from the one
CUDA gives (a MIG slice, a virtual GPU) belongs to something else and is refused.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

logger = logging.getLogger("lowtide")

_TOLERANCE = 0.1


class NvmlMemory(NamedTuple):
    """Bytes of one card; ``free`` is what any process could still take."""

    total: int
    free: int


def read(properties: Any) -> NvmlMemory | None:
    """Memory of the card torch describes by ``properties``; ``None`` where NVML can't say.

    Args:
        properties: what ``torch.cuda.get_device_properties`` returns (``uuid``,
            ``pci_domain_id``, ``pci_bus_id``, ``pci_device_id``, ``total_memory``; any may be
            missing in an older torch).
    """
    info = _ask(properties, lambda nvml, card: nvml.nvmlDeviceGetMemoryInfo(card))
    if info is None:
        return None
    total, free = int(info.total), int(info.free)
    expected = getattr(properties, "total_memory", None)
    if expected is not None and abs(total - expected) > _TOLERANCE * expected:
        return None
    return NvmlMemory(total=total, free=free)


def process_bytes(properties: Any, process: int) -> int | None:
    """Bytes of the card a process holds, its context included; ``None`` where NVML can't say.

    Windows tells no figures by process, and a container's numbers of processes are its own.
    """

    def held(nvml: Any, card: Any) -> int | None:
        for entry in nvml.nvmlDeviceGetComputeRunningProcesses(card):
            if entry.pid == process and entry.usedGpuMemory is not None:
                return int(entry.usedGpuMemory)
        return None

    found = _ask(properties, held)
    return None if found is None else int(found)


def _ask(properties: Any, question: Callable[[Any, Any], Any]) -> Any | None:
    """What ``question(nvml, card)`` returns of torch's card; ``None`` where NVML can't say."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        logger.debug("NVML does not answer: %s", error)
        return None
    try:
        card = _handle(nvml, properties)
        return None if card is None else question(nvml, card)
    except nvml.NVMLError as error:
        logger.debug("NVML knows no memory of this card: %s", error)
        return None
    finally:
        nvml.nvmlShutdown()


def _handle(nvml: Any, properties: Any) -> Any | None:
    for uuid in _uuids(properties):
        try:
            return nvml.nvmlDeviceGetHandleByUUID(uuid)
        except nvml.NVMLError:
            continue
    address = _pci_address(properties)
    if address is not None:
        return nvml.nvmlDeviceGetHandleByPciBusId(address)
    if nvml.nvmlDeviceGetCount() == 1:
        return nvml.nvmlDeviceGetHandleByIndex(0)
    return None


def _uuids(properties: Any) -> Iterator[str]:
    """Names under which NVML may know the card, the surest first.

    Without a UUID from torch, CUDA_VISIBLE_DEVICES decides if it names exactly one by UUID.
    """
    uuid = getattr(properties, "uuid", None)
    if uuid is not None:
        text = str(uuid)
        yield from (text,) if text.startswith(("GPU-", "MIG-")) else (f"GPU-{text}", f"MIG-{text}")
        return
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if len(visible) == 1 and visible[0].startswith(("GPU-", "MIG-")):
        yield visible[0]


def _pci_address(properties: Any) -> str | None:
    parts = [getattr(properties, f"pci_{name}_id", None) for name in ("domain", "bus", "device")]
    if any(part is None for part in parts):
        return None
    domain, bus, device = (int(part) for part in parts if part is not None)
    return f"{domain:08X}:{bus:02X}:{device:02X}.0"

"""One small API over torch's per-device-type memory functions.

Sizes are bytes; a reading a backend cannot give is ``None``, never 0. Every function takes a
device from :func:`device_of`, whose index is always filled. Calls that would create a device
context only to learn that nothing is allocated do not create it.
"""

from __future__ import annotations

from typing import Any

import torch

from .errors import DeviceError

ACCELERATORS = ("cuda", "xpu", "npu", "mps")
"""Accelerator types in the order of preference; ROCm answers to ``cuda``."""

_CACHING = ("cuda", "xpu", "npu")


def module_of(device: torch.device) -> Any:
    """torch's module for the device's type, such as ``torch.cuda``.

    Raises:
        DeviceError: this torch has no such module.
    """
    module = getattr(torch, device.type, None)
    if module is None:
        raise DeviceError(
            f"this torch ({torch.__version__}) has no {device.type!r} backend; install the build "
            "of torch made for that device, or choose another device"
        )
    return module


def available_types() -> list[str]:
    """Accelerator types usable now, best first; empty on a machine with a CPU only."""
    return [kind for kind in ACCELERATORS if _is_available(kind)]


def device_count(kind: str) -> int:
    """Devices of one type that this process sees; 1 for ``cpu``, 0 where there is none."""
    if kind == "cpu":
        return 1
    if not _is_available(kind):
        return 0
    return 1 if kind == "mps" else int(getattr(torch, kind).device_count())


def device_of(device: str | torch.device | None = None) -> torch.device:
    """The device meant, its index filled; ``None`` is the best one available.

    Raises:
        DeviceError: no such device on this machine, or one without memory of its own (``meta``).
    """
    if device is None:
        device = next(iter(available_types()), "cpu")
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"{device!r} names no device; write for example cuda:0 or cpu") from error
    if wanted.type == "cpu":
        return torch.device("cpu", 0)
    count = device_count(wanted.type)
    if wanted.type not in ACCELERATORS or count == 0:
        usable = ", ".join([*available_types(), "cpu"])
        raise DeviceError(f"there is no {wanted.type!r} device here; usable: {usable}")
    index = _current_index(wanted.type) if wanted.index is None else wanted.index
    if index >= count:
        raise DeviceError(
            f"there is no {wanted.type}:{index} here: {count} {wanted.type} device(s) are visible, "
            f"numbered from 0 to {count - 1}"
        )
    return torch.device(wanted.type, index)


def allocated(device: torch.device) -> int | None:
    """Bytes of live tensors on the device; ``None`` on the CPU."""
    if device.type in _CACHING:
        return int(module_of(device).memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.current_allocated_memory())
    return None


def reserved(device: torch.device) -> int | None:
    """Bytes torch's allocator holds from the driver, its cache included; ``None`` on the CPU."""
    if device.type in _CACHING:
        return int(module_of(device).memory_reserved(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    return None


def held(device: torch.device) -> tuple[int | None, int | None]:
    """(:func:`allocated`, :func:`reserved`) of one moment, by one question to the backend."""
    if device.type not in _CACHING:
        return allocated(device), reserved(device)
    stats = module_of(device).memory_stats(device)
    names = ("allocated_bytes.all.current", "reserved_bytes.all.current")
    found = tuple(int(stats.get(name, 0)) for name in names)
    return found[0], found[1]


def peak_allocated(device: torch.device) -> int | None:
    """Highest :func:`allocated` since the last reset; ``None`` where it is not recorded."""
    if device.type in _CACHING:
        return int(module_of(device).max_memory_allocated(device))
    return None


def peak_reserved(device: torch.device) -> int | None:
    """Highest :func:`reserved` since the last reset; ``None`` where it is not recorded."""
    if device.type in _CACHING:
        return int(module_of(device).max_memory_reserved(device))
    return None


def failed_allocations(device: torch.device) -> int:
    """How often the device has run out of memory in this process; 0 where it is not counted."""
    if device.type not in _CACHING or not is_initialized(device):
        return 0
    return int(module_of(device).memory_stats(device).get("num_ooms", 0))


def records_peaks(device: torch.device) -> bool:
    """Whether the backend keeps peaks itself; elsewhere they have to be sampled."""
    return device.type in _CACHING


def reset_peaks(device: torch.device) -> None:
    """Let both peaks start again from the current values; nothing where none are recorded.

    Hazard: torch keeps one peak per device for the whole process. Go through
    :class:`lowtide.memory.peaks.PeakWindow`, which keeps what others were still measuring.
    """
    if device.type in _CACHING and is_initialized(device):
        module_of(device).reset_peak_memory_stats(device)


def empty_cache(device: torch.device) -> None:
    """Give the allocator's unused segments back to the driver."""
    if device.type != "cpu" and is_initialized(device):
        module_of(device).empty_cache()


def drop_workspaces(device: torch.device) -> bool:
    """Let the matrix library's workspaces go, which are made anew when needed; False without any.

    cuBLAS keeps 8 to 32 MB in torch's allocator from its first product on.

    Hazard: nothing may be running, and a CUDA graph captured earlier must not be replayed. Only for
    moments when models leave the device, which ends such graphs all the same.
    """
    drop = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if device.type != "cuda" or drop is None or not is_initialized(device):
        return False
    drop()
    return True


def empty_host_cache(device: torch.device) -> bool:
    """Give unused pinned host memory back to the system; False where nothing caches any.

    Hazard: torch's call dereferences null for a backend that registered no caching host
    allocator, so only those known to have one are asked.
    """
    empty = getattr(getattr(torch, "accelerator", None), "empty_host_cache", None)
    if device.type not in ("cuda", "xpu") or empty is None or not is_initialized(device):
        return False
    if torch.accelerator.current_accelerator() != torch.device(device.type):
        return False
    empty()
    return True


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished what was queued on it.

    Raises:
        RuntimeError: an earlier asynchronous operation failed; torch reports it here.
    """
    if device.type == "mps":
        torch.mps.synchronize()
    elif device.type != "cpu" and is_initialized(device):
        module_of(device).synchronize(device)


def mem_get_info(device: torch.device) -> tuple[int, int] | None:
    """(free, total) bytes as the driver sees them; ``None`` where it does not say.

    On CUDA this creates the context (some hundred MB) if there is none yet.
    """
    query = getattr(module_of(device), "mem_get_info", None) if device.type in _CACHING else None
    if query is None:
        return None
    try:
        free, total = query(device)
    except RuntimeError:
        # Some Intel drivers know their total only; torch says so by raising.
        return None
    return int(free), int(total)


def supports_streams(device: torch.device) -> bool:
    """Whether copies can run beside the computation, on a stream of their own."""
    return device.type in _CACHING and hasattr(module_of(device), "Stream")


def _is_available(kind: str) -> bool:
    module = torch.backends.mps if kind == "mps" else getattr(torch, kind, None)
    return module is not None and bool(module.is_available())


def is_initialized(device: torch.device) -> bool:
    """False only if the backend says that nothing ever ran: then nothing is held there."""
    if device.type == "cpu":
        return True
    says = getattr(module_of(device), "is_initialized", None)
    return True if says is None else bool(says())


def _current_index(kind: str) -> int:
    if kind == "mps":
        return 0
    module = getattr(torch, kind)
    says = getattr(module, "is_initialized", None)
    if says is not None and not says():
        return 0
    return int(module.current_device())

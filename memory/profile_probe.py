"""What a device is measured with: torch's own copies, products and convolutions on it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from . import backend, nvml
from .peaks import PeakWindow
from .units import MIB

MOST_BYTES = 256 * MIB
"""Of one buffer, where there is no figure of what is free."""

SHARE = 16
"""Part of the free memory that one buffer may take: there may be three, and others beside."""


class DeviceProbe:
    """Measures one device with torch. Buffers are made once a size and dropped with the next.

    Args:
        most: bytes of one buffer; ``None`` = by what is free.
        alone: asked once all is measured: whether nothing else computes on the device, so that
            the matrix library's workspaces may go too.
    """

    def __init__(
        self,
        device: torch.device,
        most: int | None = None,
        alone: Callable[[], bool] = lambda: False,
    ) -> None:
        self._device = device
        self._most = most
        self._alone = alone
        self._reserved = backend.reserved(device) or 0
        self._half = torch.float32 if device.type == "cpu" else torch.float16
        self._held: dict[Any, Any] = {}

    def copy_in(self, size: int, pinned: bool) -> float:
        """Seconds to copy ``size`` bytes from the host; unpinned where nothing can be pinned."""

        def make() -> Any:
            pin = pinned and self._device.type not in ("cpu", "mps")
            host = torch.empty(size, dtype=torch.uint8, pin_memory=pin)
            host.fill_(1)
            return host, torch.empty(size, dtype=torch.uint8, device=self._device)

        host, there = self._buffers(("in", size, pinned), make)
        return self._timed(lambda: there.copy_(host, non_blocking=pinned))

    def copy_on(self, size: int) -> float:
        """Seconds to copy ``size`` bytes within the device."""

        def make() -> Any:
            one = torch.zeros(size, dtype=torch.uint8, device=self._device)
            return one, torch.empty_like(one)

        one, other = self._buffers(("on", size), make)
        return self._timed(lambda: other.copy_(one))

    def multiply(self, edge: int) -> float:
        """Seconds for the product of two square matrices in half precision (CPU: single)."""

        def make() -> Any:
            one = torch.full((edge, edge), 0.01, dtype=self._half, device=self._device)
            return one, torch.empty_like(one)

        one, out = self._buffers(("multiply", edge), make)
        return self._timed(lambda: torch.mm(one, one, out=out))

    def workspace(self, channels: int, edge: int) -> float:
        """Scratch bytes of a 3 x 3 convolution, as a part of its input, weight and output."""
        self._held.clear()
        make: Any = {"dtype": self._half, "device": self._device}
        x = torch.zeros(1, channels, edge, edge, **make)
        weight = torch.zeros(channels, channels, 3, 3, **make)
        with torch.no_grad():
            # What is kept from the first one on is no scratch.
            torch.nn.functional.conv2d(x, weight, padding=1)
            backend.synchronize(self._device)
            before = backend.allocated(self._device)
            window = PeakWindow(self._device)
            try:
                y = torch.nn.functional.conv2d(x, weight, padding=1)
                backend.synchronize(self._device)
            finally:
                peak = window.close().allocated
        if before is None or peak is None:
            return 1.0
        return max(0, peak - before - y.nbytes) / (x.nbytes + weight.nbytes + y.nbytes)

    def context(self) -> int | None:
        """Bytes this process holds on the device beside torch's; ``None`` where nobody tells."""
        if self._device.type != "cuda":
            return None
        properties = torch.cuda.get_device_properties(self._device)
        backend.synchronize(self._device)
        held = nvml.process_bytes(properties, os.getpid())
        reserved = backend.reserved(self._device)
        return None if held is None or reserved is None else max(0, held - reserved)

    def most_bytes(self) -> int:
        """The most one buffer may take."""
        if self._most is not None:
            return self._most
        info = backend.mem_get_info(self._device) if self._device.type != "cpu" else None
        return MOST_BYTES if info is None else info[0] // SHARE

    def close(self) -> None:
        """Give everything back; what others left in the allocator's cache stays if it can."""
        self._held.clear()
        if self._alone():
            backend.drop_workspaces(self._device)
        if (backend.reserved(self._device) or 0) > self._reserved:
            backend.empty_cache(self._device)
        backend.empty_host_cache(self._device)

    def _buffers(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._held:
            self._held.clear()
            self._held[key] = make()
        return self._held[key]

    def _timed(self, work: Callable[[], Any]) -> float:
        backend.synchronize(self._device)
        started = time.perf_counter()
        work()
        backend.synchronize(self._device)
        return time.perf_counter() - started

"""The highest use of a whole device and of this process's RAM, sampled while somebody watches.

For what no allocator's counter knows: other programs, other libraries in this process, contexts.
Peaks shorter than the time between two samples can be missed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import backend
from .host import process_rss
from .series import Series

SAMPLE_SECONDS = 0.1


@dataclass
class HighWater:
    """Highest readings in bytes since it was opened; ``device`` is ``None`` where unknown, and
    ``pages`` where nobody counts them."""

    device: int | None = None
    host: int = 0
    pages: int | None = None

    def _raise_to(self, device: int | None, host: int, pages: int | None) -> None:
        if device is not None:
            self.device = device if self.device is None else max(self.device, device)
        if pages is not None:
            self.pages = pages if self.pages is None else max(self.pages, pages)
        self.host = max(self.host, host)


class Sampler:
    """Samples one device while marks are open; its thread ends with :meth:`stop`.

    Args:
        pages: gives the bytes a host keeps on the device outside of torch; called from the thread.
        series: takes in what the allocator and the device hold at the thread's samples and at its
            end; nothing on the CPU.
    """

    def __init__(
        self,
        device: torch.device,
        pages: Callable[[], int] | None = None,
        series: Series | None = None,
    ) -> None:
        self._device = device
        self._pages = pages
        self._series = None if device.type == "cpu" else series
        self._began = time.perf_counter()
        self._lock = threading.Lock()
        self._open: list[HighWater] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lowtide-highwater", daemon=True)
        self._thread.start()

    def open(self) -> HighWater:
        """Begin a mark, at the present use."""
        mark = HighWater()
        with self._lock:
            self._open.append(mark)
        self._sample()
        return mark

    def close(self, mark: HighWater) -> HighWater:
        """Sample once more and end a mark; closing again changes nothing."""
        self._sample()
        with self._lock:
            self._open = [other for other in self._open if other is not mark]
        return mark

    def stop(self) -> None:
        """End the thread. Marks keep what they have."""
        if not self._end.is_set():
            self._end.set()
            self._thread.join()
            self._record(self._sample())

    def _run(self) -> None:
        self._record(self._sample())
        while not self._end.wait(SAMPLE_SECONDS):
            self._record(self._sample())

    def _sample(self) -> int | None:
        device, host = _device_use(self._device), process_rss()
        pages = None if self._pages is None else self._pages()
        with self._lock:
            for mark in self._open:
                mark._raise_to(device, host, pages)
        return device

    def _record(self, device: int | None) -> None:
        if self._series is None or not backend.is_initialized(self._device):
            return
        allocated, reserved = backend.held(self._device)
        seconds = round(time.perf_counter() - self._began, 3)
        self._series.add((seconds, allocated, reserved, device))


def _device_use(device: torch.device) -> int | None:
    if device.type == "cpu" or not backend.is_initialized(device):
        return None  # asking a device that was never used would create its context
    info = backend.mem_get_info(device)
    return None if info is None else info[1] - info[0]

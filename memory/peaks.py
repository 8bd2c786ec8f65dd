"""Windows over one device's memory: each knows the peak since it was opened.

torch keeps a single peak per device. Opening a window resets it, so the peak so far is first
folded into every window already open: monitors nest, and a stage's window does not spoil the
run's. A reset by anyone else can't be seen and lowers what the open windows find.

Where the backend records no peaks (mps, cpu) a thread samples, and shorter peaks can be missed.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch

from . import backend
from .host import process_rss

SAMPLE_SECONDS = 0.005

_lock = threading.RLock()
_open: dict[torch.device, list[PeakWindow]] = {}
_samplers: dict[torch.device, _Sampler] = {}


@dataclass(frozen=True)
class Peak:
    """Highest readings in bytes; ``host`` is this process's RSS, sampled on the CPU only."""

    allocated: int | None = None
    reserved: int | None = None
    host: int | None = None

    def joined(self, other: Peak) -> Peak:
        """The higher reading of each pair; an unknown one gives way."""
        return Peak(
            allocated=_highest(self.allocated, other.allocated),
            reserved=_highest(self.reserved, other.reserved),
            host=_highest(self.host, other.host),
        )


class PeakWindow:
    """The peak on ``device`` from construction to :meth:`close`. Safe to use from any thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._peak = Peak()
        with _lock:
            windows = _open.setdefault(device, [])
            _fold(device)
            backend.reset_peaks(device)
            windows.append(self)
            _fold(device)
            if not backend.records_peaks(device) and device not in _samplers:
                _samplers[device] = _Sampler(device)

    def read(self) -> Peak:
        """The peak so far, or the last one once closed."""
        with _lock:
            _fold(self._device)
            return self._peak

    def close(self) -> Peak:
        """Stop counting and return the peak; closing again changes nothing."""
        with _lock:
            peak = self.read()
            windows = _open.get(self._device, [])
            if self in windows:
                windows.remove(self)
            sampler = None if windows else _samplers.pop(self._device, None)
        if sampler is not None:
            sampler.stop()
        return peak


class _Sampler:
    """Reads what no counter records, while a window is open."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lowtide-peaks", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            with _lock:
                _fold(self._device)

    def stop(self) -> None:
        """End the thread; called without the lock, which the thread takes."""
        self._stop.set()
        self._thread.join()


def _fold(device: torch.device) -> None:
    windows = _open.get(device)
    if windows:
        now = _reading(device)
        for window in windows:
            window._peak = window._peak.joined(now)


def _reading(device: torch.device) -> Peak:
    if backend.records_peaks(device):
        return Peak(backend.peak_allocated(device), backend.peak_reserved(device))
    host = process_rss() if device.type == "cpu" else None
    return Peak(backend.allocated(device), backend.reserved(device), host)


def _highest(one: int | None, other: int | None) -> int | None:
    known = [value for value in (one, other) if value is not None]
    return max(known, default=None)

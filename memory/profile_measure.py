"""Measures what a device achieves: copies from the host, its own memory, products, convolutions.

Small work is made larger until it takes long enough to be timed, so that a slow device is done as
soon as a fast one. A deadline holds whatever the device does: the work runs in a thread of its own,
and who waits for it goes on when the time is over.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from . import backend, nvml
from .peaks import PeakWindow
from .profile import DeviceProfile
from .units import MIB

logger = logging.getLogger("lowtide")

SECONDS = 10.0
"""The longest anybody waits for a measurement."""

_LONG_ENOUGH = 0.02
"""Seconds of work that a clock and a launch don't blur."""

_REPEATS = 3
_FIRST_BYTES, _MOST_BYTES = MIB, 256 * MIB
_FIRST_EDGE, _MOST_EDGE = 256, 8192
_SHARE = 16
"""Part of the free memory that one buffer may take: there may be three, and others beside."""

_CONVOLUTIONS = ((320, 128), (640, 64), (512, 256))
"""(channels, edge) of what UNets and VAEs compute most: 3 x 3, one image of 1024 pixels."""


class Probe(Protocol):
    """What is measured with: each call does its work once and returns the seconds it took."""

    def copy_in(self, size: int, pinned: bool) -> float: ...

    def copy_on(self, size: int) -> float: ...

    def multiply(self, edge: int) -> float: ...

    def workspace(self, channels: int, edge: int) -> float: ...

    def context(self) -> int | None: ...

    def most_bytes(self) -> int: ...

    def close(self) -> None: ...


@dataclass
class _Found:
    """What is known so far, by field of a profile."""

    values: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    over: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)


def measure(
    start: DeviceProfile,
    probe: Callable[[], Probe],
    *,
    seconds: float = SECONDS,
) -> DeviceProfile:
    """``start`` with its figures replaced by measured ones; returns within ``seconds``.

    Where the time is over first, or the device fails, what is missing stays as it was, and the
    profile does not count as measured; its source says so.

    Args:
        probe: makes what to measure with, in the measuring thread.
    """
    found = _Found()
    began = time.monotonic()
    thread = threading.Thread(
        target=_run, args=(found, probe, began + seconds), name="lowtide profile", daemon=True
    )
    thread.start()
    found.done.wait(seconds)
    found.over.set()
    values = dict(found.values)
    missing = [name for name in _FIGURES if name not in values]
    took = time.monotonic() - began
    if not missing:
        source = f"measured on this machine in {took:.1f} s"
    else:
        why = found.failure or f"the {seconds:g} s for it were over"
        source = f"{', '.join(missing)} not measured: {why}; {start.source}"
    changes: dict[str, Any] = {**values, "measured": not missing, "source": source}
    if "context_bytes" in changes:
        changes["context_bytes"] = int(changes["context_bytes"])
    return replace(start, **changes)


_FIGURES = ("h2d_pinned", "h2d_pageable", "bandwidth", "flops", "workspace_factor")
"""What a whole measurement finds. The context's size is taken where the driver tells it."""


def _run(found: _Found, make: Callable[[], Probe], deadline: float) -> None:
    probe: Probe | None = None
    try:
        probe = make()
        _figures(found, probe, deadline)
    except Exception as error:  # whatever a driver does, plans are made with what there is
        found.failure = f"{type(error).__name__}: {error}"
        logger.debug("the device was not measured", exc_info=True)
    finally:
        if probe is not None:
            probe.close()
        found.done.set()


def _figures(found: _Found, probe: Probe, deadline: float) -> None:
    def over() -> bool:
        return found.over.is_set() or time.monotonic() > deadline

    most = max(_FIRST_BYTES, min(_MOST_BYTES, probe.most_bytes()))
    edge = _FIRST_EDGE
    while edge < _MOST_EDGE and (2 * edge) ** 2 * 2 <= most:
        edge *= 2
    values = found.values
    context = probe.context()
    if context is not None:
        values["context_bytes"] = context
    for name, run, first, last, amount in (
        ("h2d_pinned", lambda n: probe.copy_in(n, True), _FIRST_BYTES, most, _as_is),
        ("h2d_pageable", lambda n: probe.copy_in(n, False), _FIRST_BYTES, most, _as_is),
        ("bandwidth", probe.copy_on, _FIRST_BYTES, most, _read_and_written),
        ("flops", probe.multiply, _FIRST_EDGE, edge, _of_product),
    ):
        rate = _best_rate(run, first, last, amount, over)
        if rate is None:
            return
        values[name] = rate
    factor = 0.0
    for channels, size in _CONVOLUTIONS:
        if over():
            return
        share = (deadline - time.monotonic()) / (4 * len(_CONVOLUTIONS))
        while size > 8 and 18 * (channels * size) ** 2 / values["flops"] > share:
            size //= 2
        factor = max(factor, probe.workspace(channels, size))
    values["workspace_factor"] = factor


def _best_rate(
    run: Callable[[int], float],
    size: int,
    last: int,
    amount: Callable[[int], float],
    over: Callable[[], bool],
) -> float | None:
    """The highest rate of a few runs, of a size that takes long enough; ``None`` once it is over.

    The highest: other programs can only slow a run down.
    """
    if over():
        return None
    run(size)  # the first one also wakes the device and loads kernels
    while not over():
        took = max(run(size), 1e-9)
        if took >= _LONG_ENOUGH or size >= last:
            best = took
            for _ in range(_REPEATS - 1):
                if over():
                    break
                best = min(best, max(run(size), 1e-9))
            return amount(size) / best
        size = min(last, size * 2)
    return None


def _as_is(size: int) -> float:
    return float(size)


def _read_and_written(size: int) -> float:
    return 2.0 * size


def _of_product(edge: int) -> float:
    return 2.0 * edge**3


class DeviceProbe:
    """Measures one device with torch. Buffers are made once a size and dropped with the next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
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
        info = backend.mem_get_info(self._device) if self._device.type != "cpu" else None
        return _MOST_BYTES if info is None else info[0] // _SHARE

    def close(self) -> None:
        """Give everything back."""
        self._held.clear()
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

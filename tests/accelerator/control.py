"""The handle tests and tools hold: configure the simulated accelerator and read its figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

from .device_module import FOLDED, peaks_of

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
DEFAULT_CAPACITY = 8 << 30
MAX_DEVICES = 8


def parse_bytes(size: int | str) -> int:
    """Bytes of ``60 << 20``, ``"60M"``, ``"1.5G"`` (K, M, G are 1024-based) or ``"4096"``."""
    if isinstance(size, int):
        value = size
    else:
        text = size.strip().upper().removesuffix("B").removesuffix("I")
        unit = UNITS.get(text[-1:], 0)
        try:
            value = int(float(text[:-1]) * unit) if unit else int(text)
        except (ValueError, OverflowError):
            raise ValueError(
                f"the capacity {size!r} is no amount of memory; give one such as 8G, 512M or bytes"
            ) from None
    if value <= 0:
        raise ValueError(f"a capacity must be positive, got {size!r}; give one such as 8G")
    return value


class Accelerator:
    """One simulated device; all figures are bytes.

    Calling the handle reconfigures the whole machine: ``accelerator(capacity="60M", devices=2)``.
    ``at(1)`` is the handle of another device. Counters are the process's, peaks a device's.
    """

    def __init__(self, core: ModuleType, flavour: str, index: int = 0) -> None:
        self._core = core
        self.flavour = flavour
        self.index = index
        self.device = torch.device(flavour, index)

    def __repr__(self) -> str:
        return f"Accelerator({self.device}, capacity={self.capacity})"

    # -- configuration ---------------------------------------------------------------------------
    def __call__(
        self,
        capacity: int | str | None = None,
        devices: int | None = None,
        poison: bool | None = None,
        keep_pages: bool | None = None,
        overhead: int | None = None,
        hold_recorded: bool | None = None,
    ) -> Accelerator:
        """Change what is given, keep the rest, and return self.

        capacity: bytes of each device ("60M"); reserved memory above it stays until it is freed.
        devices: how many there are; a device that goes away must hold nothing.
        poison: fill freed and fresh device memory with 0xFF (NaN in every float type).
        keep_pages: released memory stays this process's own, so that taking it again costs the host
            nothing, as on a device; for timing (False by default: its RAM is the host's again).
        overhead: bytes a context takes beside the allocator, on each device (0 by default).
        hold_recorded: whether ``record_stream`` keeps a freed block until its stream is waited for.
        """
        if devices is not None:
            if not 1 <= devices <= MAX_DEVICES:
                raise ValueError(f"devices must be 1 to {MAX_DEVICES}, got {devices}")
            self._core.set_device_count(devices)
        if capacity is not None:
            for index in range(MAX_DEVICES):
                self._core.set_capacity(index, parse_bytes(capacity))
        if overhead is not None:
            self._core.set_overhead(overhead)
        if poison is not None:
            self._core.set_poison(poison)
        if keep_pages is not None:
            self._core.set_keep_pages(keep_pages)
        if hold_recorded is not None:
            self._core.set_hold_recorded(hold_recorded)
        return self

    def at(self, index: int) -> Accelerator:
        """The handle of device ``index``."""
        if not 0 <= index < self._core.device_count():
            raise ValueError(f"no device {index}: there are {self._core.device_count()}")
        return Accelerator(self._core, self.flavour, index)

    @property
    def device_count(self) -> int:
        return self._core.device_count()

    @contextlib.contextmanager
    def limited(self, capacity: int | str) -> Iterator[Accelerator]:
        """Another capacity for the length of a block, on this device."""
        before = self.capacity
        self._core.set_capacity(self.index, parse_bytes(capacity))
        try:
            yield self
        finally:
            self._core.set_capacity(self.index, before)

    # -- figures of this device ------------------------------------------------------------------
    @property
    def module(self) -> Any:
        """``torch.npu`` or ``torch.cuda``."""
        return getattr(torch, self.flavour)

    @property
    def capacity(self) -> int:
        return self._core.mem_info(self.index)[1]

    @property
    def free(self) -> int:
        """Capacity minus reserved minus overhead: what a driver would report."""
        return self._core.mem_info(self.index)[0]

    def stats(self) -> dict[str, int]:
        """The allocator's statistics, under the names of ``torch.cuda.memory_stats``."""
        return self._core.stats(self.index)

    def snapshot(self) -> list[dict[str, Any]]:
        """Every block in address order: segment, address, size, stream, pool, state."""
        return self._core.snapshot(self.index)

    @property
    def allocated(self) -> int:
        return self.stats()["allocated_bytes.all.current"]

    @property
    def reserved(self) -> int:
        return self.stats()["reserved_bytes.all.current"]

    @property
    def peak_allocated(self) -> int:
        """Since the handle's ``reset_peaks``, whatever the program itself has reset since."""
        return peaks_of(self._core, self.index)[0]

    @property
    def peak_reserved(self) -> int:
        """Since the handle's ``reset_peaks``, whatever the program itself has reset since."""
        return peaks_of(self._core, self.index)[1]

    @property
    def peak_op(self) -> str:
        """The operator whose allocation last reached ``peak_allocated``; "" when there was none."""
        return self._core.peak_op(self.index)

    def reset_peaks(self) -> None:
        FOLDED.pop(self.index, None)
        self._core.reset_peaks(self.index)

    def watch(self) -> None:
        """Begin a pair of peaks of the test's own; torch's statistics are not touched."""
        self._core.watch(self.index)

    @property
    def watched(self) -> tuple[int, int]:
        """Peaks allocated and reserved since ``watch``, whoever resets torch's."""
        return self._core.watched(self.index)

    def empty_cache(self) -> None:
        """Give the cached segments of every device back."""
        self._core.empty_cache()

    def synchronize(self) -> None:
        self._core.synchronize(self.index)

    # -- figures of the process ------------------------------------------------------------------
    def counters(self) -> dict[str, int]:
        """Since the last ``reset_counters``; see README.md for each key."""
        return self._core.counters()

    def reset_counters(self) -> None:
        """Counters to 0, the pinned peak to what is pinned now. Peaks: ``reset_peaks``."""
        self._core.reset_counters()

    def op_counts(self) -> dict[str, int]:
        """Calls per operator since the last ``reset_counters``."""
        return self._core.op_counts()

    # -- faults ----------------------------------------------------------------------------------
    def fail_allocation(self, n: int) -> None:
        """Make the n-th device allocation from now (1 = the next) run out of memory, once."""
        if n < 1:
            raise ValueError(f"n counts from 1, got {n}")
        self._core.fail_allocation(n)

    def shrink_at(self, n: int, capacity: int | str) -> None:
        """Give the device another capacity from the n-th allocation on (1 = the next).

        A shortage that lasts: what is reserved above the capacity stays, but nothing is added to
        it. Give the old capacity back by calling the handle.
        """
        if n < 1:
            raise ValueError(f"n counts from 1, got {n}")
        self._core.shrink_at(n, parse_bytes(capacity))

    def clear_fault(self) -> None:
        """Forget faults that have not struck; a capacity that has shrunk stays."""
        self._core.fail_allocation(-1)
        self._core.shrink_at(-1, 0)

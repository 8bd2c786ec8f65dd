"""Measures what a device achieves: copies from the host, its own memory, products, convolutions.

Small work is made larger until it takes long enough to be timed, so that a slow device is done as
soon as a fast one. A deadline holds whatever the device does: the work runs in a thread of its own,
and who waits for it goes on when the time is over.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

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
    longest: float = math.inf
    halted: Callable[[], bool] = lambda: False
    over: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)


def measure(
    start: DeviceProfile,
    probe: Callable[[], Probe],
    *,
    seconds: float = SECONDS,
    longest: float = math.inf,
    halted: Callable[[], bool] = lambda: False,
) -> DeviceProfile:
    """``start`` with its figures replaced by measured ones; returns within ``seconds``.

    Where the time is over first, or the device fails, what is missing stays as it was, and the
    profile does not count as measured; its source says so.

    Args:
        probe: makes what to measure with, in the measuring thread.
        longest: seconds that one piece of work should take at most.
        halted: whether to stop; asked between two pieces of work, from the measuring thread.
    """
    found = _Found(longest=longest, halted=halted)
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
        return found.over.is_set() or time.monotonic() > deadline or found.halted()

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
        share = min(found.longest, (deadline - time.monotonic()) / (4 * len(_CONVOLUTIONS)))
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

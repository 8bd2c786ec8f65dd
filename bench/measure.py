"""One row of the table: a pipeline set up, warmed up, run, released, and measured throughout."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
import torch

from ..memory import backend
from ..memory.monitor import MemoryMonitor
from .places import Place


@dataclass
class Row:
    """What was measured; bytes and seconds. ``None`` is unknown on this device, never zero.

    Attributes:
        setup_peak: highest allocated while setting up and warming up.
        h2d, d2h: bytes copied to and from the device during the run.
        pinned: most page-locked host memory at any time.
        ratio: seconds relative to the first row's; ``None`` without such a row.
        difference: largest absolute difference to the first row's image, values 0..1.
        stages: highest allocated of each stage; on the CPU the process's RAM.
        error: why there are no figures.
    """

    name: str
    peak_allocated: int | None = None
    peak_reserved: int | None = None
    setup_peak: int | None = None
    peak_host: int | None = None
    h2d: int | None = None
    d2h: int | None = None
    pinned: int | None = None
    seconds: float | None = None
    ratio: float | None = None
    left_allocated: int | None = None
    left_reserved: int | None = None
    difference: float | None = None
    stages: dict[str, int | None] = field(default_factory=dict)
    applied: list[str] = field(default_factory=list)
    host_peak: int | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Job:
    """The run every row repeats; ``run(held, size, steps)`` gives float32 images on the CPU.

    ``warm_up`` is the size in pixels of the one step that goes before it.
    """

    size: int
    steps: int
    warm_up: int
    run: Callable[[Any, int, int], torch.Tensor]


def measure(
    row: Row,
    place: Place,
    job: Job,
    prepare: Callable[[], Any],
    subject: Callable[[Any], Any],
    release: Callable[[Any], None],
) -> torch.Tensor | None:
    """Fill ``row`` and return the image; ``None`` where the device ran out of memory.

    Args:
        prepare: builds and sets up; gives what ``run`` and ``release`` take.
        subject: the pipeline or optimizer whose stages are to be watched.
        release: gives the device's memory back, after which what is left is read.
    """
    held: Any = None
    image: torch.Tensor | None = None
    try:
        with MemoryMonitor(place.device, release_on_exit=False) as setting_up:
            held = prepare()
            job.run(held, job.warm_up, 1)
        row.setup_peak = setting_up.peak_allocated
        before = place.counters()
        with MemoryMonitor(subject(held), False, device=place.device) as monitor:
            started = time.perf_counter()
            image = job.run(held, job.size, job.steps)
            backend.synchronize(place.device)
            row.seconds = time.perf_counter() - started
        take(row, monitor, before, place.counters())
    except torch.OutOfMemoryError as error:
        row.error = f"out of memory: {str(error).splitlines()[0]}"
    if held is not None:
        release(held)
    del held
    gc.collect()
    row.left_allocated = backend.allocated(place.device)
    row.left_reserved = backend.reserved(place.device)
    row.host_peak = host_peak()
    return image


def compare(row: Row, first: Row | None, image: torch.Tensor, reference: torch.Tensor) -> None:
    """Set the time ratio and the difference against the first row."""
    if first is not None and first.seconds and row.seconds is not None:
        row.ratio = row.seconds / first.seconds
    row.difference = float((image - reference).abs().max())


def host_peak() -> int:
    """Highest resident bytes of this process so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def take(
    row: Row,
    monitor: MemoryMonitor,
    before: dict[str, int] | None,
    after: dict[str, int] | None,
) -> None:
    """Enter what ``monitor`` measured, and what the counters moved by meanwhile."""
    row.peak_allocated, row.peak_reserved = monitor.peak_allocated, monitor.peak_reserved
    row.peak_host = monitor.peak_host
    row.stages = {
        name: peak.host if peak.allocated is None else peak.allocated
        for name, peak in monitor.stages.items()
    }
    if before is not None and after is not None:
        row.h2d = after["h2d"] - before["h2d"]
        row.d2h = after["d2h"] - before["d2h"]
        row.pinned = after["pinned_peak"]

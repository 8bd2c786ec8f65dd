"""Which weights to keep on the device when not all of them fit.

What is streamed is best spread evenly over a step, so that copies never wait for each other;
or what computes longest for its bytes; or the end of the step; ComfyUI keeps its largest layers.
"""

from __future__ import annotations

from .placement import Layout
from .schedule import Rates, seconds_of
from .trace import Trace

SPREAD, INTENSE, TAIL, LARGEST = "spread", "intense", "tail", "largest"
_BLOCK = 512
"""Allocators round every weight up to this many bytes."""
ORDERS = (SPREAD, INTENSE, TAIL)


def streamed_by(
    order: str, trace: Trace, layout: Layout, room: int, rates: Rates
) -> frozenset[int]:
    """Indices of weights to keep resident in at most ``room`` bytes; ``layout`` streams all."""
    modules = list(layout.units)
    sizes = {
        module: sum(-(-layout.stored[index] // _BLOCK) * _BLOCK for index in layout.units[module])
        for module in modules
    }
    total = sum(sizes.values())
    if order == LARGEST:
        kept = _filled(sorted(modules, key=lambda module: -sizes[module]), sizes, room)
    elif order == TAIL:
        kept = _filled(modules, sizes, room)
    elif order == INTENSE:
        work = dict.fromkeys(modules, 0.0)
        for operation in trace.operations:
            if operation.module in work:
                flops, nbytes = operation.flops, operation.nbytes
                work[operation.module] += seconds_of(flops, nbytes, rates, operation.wide)
        least = sorted(modules, key=lambda module: work[module] / max(1, sizes[module]))
        kept = _filled(least, sizes, room)
    else:
        kept = _spread(modules, sizes, room / max(1, total))
    return frozenset(index for module in kept for index in layout.units[module])


def _filled(modules: list[int], sizes: dict[int, int], room: int) -> list[int]:
    kept, used = [], 0
    for module in modules:
        if used + sizes[module] <= room:
            kept.append(module)
            used += sizes[module]
    return kept


def _spread(modules: list[int], sizes: dict[int, int], part: float) -> list[int]:
    """Every so many bytes of the step a unit is kept, ``part`` of them in all."""
    kept, passed, used = [], 0, 0
    for module in modules:
        passed += sizes[module]
        if used + sizes[module] <= passed * part:
            kept.append(module)
            used += sizes[module]
    return kept

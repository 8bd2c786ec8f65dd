"""Replays a trace under a placement: every allocation in order, through an allocator's model."""

from __future__ import annotations

from dataclasses import dataclass

from .allocator import CachingAllocator
from .placement import Layout
from .trace import ALLOCATED, COMPUTED, ENTERED, FREED, Trace

_PLACE = 4
"""Bytes of a value's place in the table it is decoded by."""


@dataclass(frozen=True)
class Peak:
    """The most bytes of one call, and what it was that took them: an operation, and the module."""

    allocated: int
    reserved: int
    operation: str
    module: str


class Replay:
    """One call after the other on one allocator.

    Attributes:
        workspace_factor: how much of the workspaces in the trace this device's libraries take;
            0 = a device that counts tensors only.
    """

    def __init__(
        self, allocator: CachingAllocator | None = None, workspace_factor: float = 1.0
    ) -> None:
        self.allocator = allocator or CachingAllocator()
        self.workspace_factor = workspace_factor

    def hold(self, layout: Layout) -> dict[int, int]:
        """Allocate resident weights and buffers; their handles are what other methods take."""
        malloc = self.allocator.malloc
        held = {index: malloc(layout.stored[index]) for index in layout.resident}
        if layout.units:
            largest = layout.largest_unit
            held.update((-1 - number, malloc(largest)) for number in range(layout.buffers))
        return held

    def drop(self, held: dict[int, int]) -> None:
        """Free what :meth:`hold` allocated."""
        for handle in held.values():
            self.allocator.release(handle)
        held.clear()

    def call(self, trace: Trace, layout: Layout, held: dict[int, int]) -> Peak:
        """Run the trace once, its resident weights held. Inputs are allocated for the call."""
        return _Call(self, trace, layout, held).run()


class _Call:
    """The state of one replayed call."""

    def __init__(self, replay: Replay, trace: Trace, layout: Layout, held: dict[int, int]) -> None:
        self.allocator = replay.allocator
        self.factor = replay.workspace_factor
        self.trace = trace
        self.layout = layout
        self.held = held
        self.living: dict[int, int] = {}
        self.here: dict[int, int] = {}
        """Handles of the streamed weights that are on the device, by index."""
        self.cast: dict[int, int] = {}
        self.most = 0
        self.operation = self.module = ""

    def run(self) -> Peak:
        allocator, trace = self.allocator, self.trace
        allocator.reset_peaks()
        name = ""
        within = 0
        for kind, value in trace.steps():
            if kind == ALLOCATED:
                self.living[value] = allocator.malloc(trace.storages[value])
            elif kind == FREED:
                allocator.release(self.living.pop(value, 0))
            elif kind == COMPUTED:
                name, within = trace.operations[value].name, trace.operations[value].module
                self._compute(value)
            elif kind == ENTERED:
                self._enter(value)
                name, within = "weights arriving", value
            else:
                self._leave(value)
            if allocator.peak_allocated > self.most:
                self.most = allocator.peak_allocated
                self.operation, self.module = name, trace.modules[within][0]
        peak = Peak(allocator.peak_allocated, allocator.peak_reserved, self.operation, self.module)
        for handle in (*self.living.values(), *self.here.values(), *self.cast.values()):
            allocator.release(handle)
        return peak

    def _compute(self, index: int) -> None:
        operation = self.trace.operations[index]
        malloc, release = self.allocator.malloc, self.allocator.release
        brief = [
            malloc(self.layout.stored[weight])
            for weight in operation.weights
            if weight not in self.held and weight not in self.here and weight not in self.cast
        ]
        if operation.workspace and self.factor:
            brief.append(malloc(int(operation.workspace * self.factor)))
        for handle in brief:
            release(handle)

    def _enter(self, module: int) -> None:
        malloc, release = self.allocator.malloc, self.allocator.release
        for weight in self.layout.units.get(module, ()):
            if weight not in self.here:
                own = 0 if self.layout.buffers else self.layout.stored[weight]
                self.here[weight] = malloc(own)
        for weight in self.layout.casts.get(module, ()):
            self.cast[weight] = malloc(self.layout.cast[weight])
            if self.layout.decoding:
                values = min(self.trace.weights[weight].numel, self.layout.decoding)
                release(malloc(_PLACE * values))
            if self.layout.drops_codes and weight in self.here:
                release(self.here[weight])
                self.here[weight] = 0
            if not self.layout.keeps_codes:
                codes = self.held if weight in self.held else self.here
                release(codes.get(weight, 0))
                codes[weight] = 0

    def _leave(self, module: int) -> None:
        malloc, release = self.allocator.malloc, self.allocator.release
        for weight in self.layout.casts.get(module, ()):
            if self.held.get(weight) == 0:
                self.held[weight] = malloc(self.layout.stored[weight])
            release(self.cast.pop(weight, 0))
        for weight in self.layout.units.get(module, ()):
            release(self.here.pop(weight, 0))

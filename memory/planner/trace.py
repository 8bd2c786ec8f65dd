"""What one call of a module does to memory, recorded once and replayed for any placement.

Weights are kept out of the events, in a table: where they lie is what a placement decides. Plain
values only; recording needs torch and lives in ``memory/tracing``.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ..errors import LowtideError

FORMAT = 3
"""Of the stored form, and of what the recorder counts: another number and nothing old is read."""

ALLOCATED, FREED, COMPUTED, ENTERED, LEFT = range(5)
"""Kinds of events; the value is a storage, a storage, an operation, a module, a module."""
_KINDS = 8


class TraceError(LowtideError):
    """A stored trace that cannot be read; it is recorded again."""


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer: ``owner`` is the index of the module it belongs to."""

    name: str
    owner: int
    nbytes: int
    numel: int
    dtype: str
    dimensions: int
    parameter: bool = True


@dataclass(frozen=True)
class Operation:
    """One kernel.

    Attributes:
        nbytes: read and written, weights included.
        workspace: bytes the library behind it takes while it runs and no tensor shows.
        module: index of the module it was called in.
        weights: indices of the weights it reads.
        arriving, leaving: bytes copied from the host, and to it.
        wide: computed in float32.
    """

    name: str
    flops: int
    nbytes: int
    workspace: int
    module: int
    weights: tuple[int, ...]
    arriving: int = 0
    leaving: int = 0
    wide: bool = False


@dataclass(frozen=True, eq=False)
class Trace:
    """One recorded call. Equal to itself only: comparing thousands of events is nobody's wish.

    Attributes:
        modules: (dotted path, class name, index of the parent) of every module; the root is first.
        storages: bytes of every storage born, inputs first.
        inputs: how many of them are the caller's.
        events: (kind, value) in order, each coded as one number.
        outputs: storages the call returned.
        seconds: of the recording.
    """

    modules: tuple[tuple[str, str, int], ...]
    weights: tuple[Weight, ...]
    storages: tuple[int, ...]
    inputs: int
    operations: tuple[Operation, ...]
    events: tuple[int, ...]
    outputs: tuple[int, ...]
    seconds: float = 0.0

    def steps(self) -> Sequence[tuple[int, int]]:
        """The events as (kind, value)."""
        return self._steps

    @cached_property
    def _steps(self) -> tuple[tuple[int, int], ...]:
        return tuple((code % _KINDS, code // _KINDS) for code in self.events)

    @cached_property
    def entered(self) -> tuple[int, ...]:
        """The modules the call enters, in order."""
        return tuple(value for kind, value in self._steps if kind == ENTERED)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, as they are stored."""
        return sum(weight.nbytes for weight in self.weights)

    @property
    def flops(self) -> int:
        """Floating-point operations of the whole call; a multiply-add counts two."""
        return sum(operation.flops for operation in self.operations)

    @cached_property
    def arriving(self) -> int:
        """Bytes the call itself copies from the host: maps that wait there, not weights."""
        return sum(operation.arriving for operation in self.operations)

    @property
    def output_bytes(self) -> int:
        """Bytes of what the call returned."""
        return sum(self.storages[index] for index in set(self.outputs))

    @property
    def input_bytes(self) -> int:
        """Bytes of what the caller handed in."""
        return sum(self.storages[: self.inputs])

    def activation_peak(self, workspace_factor: float = 1.0) -> int:
        """Most bytes alive at once besides weights, workspaces included; not rounded."""
        now = most = 0
        for kind, value in self.steps():
            if kind == ALLOCATED:
                now += self.storages[value]
                most = max(most, now)
            elif kind == FREED:
                now -= self.storages[value]
            elif kind == COMPUTED:
                extra = self.operations[value].workspace * workspace_factor
                most = max(most, now + int(extra))
        return most


def coded(kind: int, value: int) -> int:
    """An event as one number."""
    return value * _KINDS + kind


def dump(trace: Trace, key: str) -> bytes:
    """The trace as bytes that say which key they are of and whether they are whole."""
    names = sorted({operation.name for operation in trace.operations})
    place = {name: index for index, name in enumerate(names)}
    body = {
        "key": key,
        "modules": trace.modules,
        "weights": [list(asdict(weight).values()) for weight in trace.weights],
        "storages": trace.storages,
        "inputs": trace.inputs,
        "names": names,
        "operations": [
            [
                place[o.name],
                o.flops,
                o.nbytes,
                o.workspace,
                o.module,
                o.weights,
                o.arriving,
                o.leaving,
                o.wide,
            ]
            for o in trace.operations
        ],
        "events": trace.events,
        "outputs": trace.outputs,
        "seconds": trace.seconds,
    }
    packed = zlib.compress(json.dumps(body, separators=(",", ":")).encode(), 1)
    return _head(packed) + packed


def load(data: bytes, key: str) -> Trace:
    """The trace :func:`dump` wrote under ``key``.

    Raises:
        TraceError: other bytes, bytes missing, another format, or another key.
    """
    head = _head(b"")
    packed = data[len(head) :]
    if data[: len(head)] != _head(packed):
        raise TraceError("not a trace of this format, or not a whole one")
    try:
        body: dict[str, Any] = json.loads(zlib.decompress(packed))
        if body["key"] != key:
            raise TraceError("the trace of another call")
        names = body["names"]
        return Trace(
            tuple((path, kind, parent) for path, kind, parent in body["modules"]),
            tuple(Weight(*values) for values in body["weights"]),
            tuple(body["storages"]),
            int(body["inputs"]),
            tuple(_operation(names, values) for values in body["operations"]),
            tuple(body["events"]),
            tuple(body["outputs"]),
            float(body["seconds"]),
        )
    except (KeyError, IndexError, TypeError, ValueError, zlib.error) as error:
        raise TraceError(f"a trace that cannot be read: {error}") from error


def key_of(question: Mapping[str, Any]) -> str:
    """A name for everything a trace depends on; any difference gives another one."""
    text = json.dumps({"format": FORMAT, **question}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _operation(names: list[str], values: list[Any]) -> Operation:
    name, flops, nbytes, workspace, module, weights, arriving, leaving, wide = values
    return Operation(
        names[name], flops, nbytes, workspace, module, tuple(weights), arriving, leaving, wide
    )


def _head(packed: bytes) -> bytes:
    return b"lowtide trace %03d " % FORMAT + hashlib.sha256(packed).digest()

"""Where the weights of one component lie while it works, and how much of each is stored.

A placement says nothing of activations, which the trace has. What is not resident is streamed: it
comes to the device when its unit begins and is dropped when the unit ends, never written back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from .trace import Trace

LEAF, PARENT, BLOCK = "leaf", "parent", "block"
UNITS = (LEAF, PARENT, BLOCK)
MATRIX_LAYERS = ("Linear", "Conv")
"""Kinds of modules, as the recorder names them, whose matrices FP8 may hold."""
DELICATE = ("pos_embed", "patch_embed", "norm", r"^proj_in(\.|$)", r"^proj_out(\.|$)")
ENCODER_DELICATE = ("norm", "embed", r"\.wo(\.|$)")
FP8_BYTES = 1


@dataclass(frozen=True)
class Placement:
    """One component's weights.

    Attributes:
        resident: indices of weights on the device for the whole turn; ``None`` = all.
        unit: streamed together: a ``leaf``'s own weights; the same, but what is neither a linear
            layer nor a convolution with its ``parent`` (diffusers' groups); or a whole ``block``
            of a module list.
        fp8: layers' matrices are stored in one byte a value and cast for their layer's forward.
        keeps_codes: whether the stored form stays beside the cast one while the layer computes.
        drops_codes: whether streamed codes are freed once they are decoded.
        decoding: values decoded at a time, four bytes for each meanwhile; 0 = none beside.
        coded: indices of the weights FP8 takes where the host chooses; ``None`` = by ``skip``.
        keeps_originals: whether the weights FP8 stands for stay in host memory.
        skip: patterns of names whose weights keep their type; see ``fp8_layerwise``.
        linear_only: FP8 for linear layers only (text encoders).
        ahead: units copied ahead of the one that computes, where that does not raise the peak;
            0 = copies and computation take turns.
        pinned: streamed weights wait in page-locked host memory.
        buffers: streamed units are copied into that many buffers of the largest one's size, which
            stay (ComfyUI's copy streams); 0 = each unit has memory of its own.
        largest_first: resident weights come leaf by leaf, the largest first; else as the module
            has them.
        stays: the weights are on the device before the turn and after it.
    """

    resident: frozenset[int] | None = None
    unit: str = LEAF
    fp8: bool = False
    keeps_codes: bool = False
    drops_codes: bool = False
    decoding: int = 0
    coded: frozenset[int] | None = None
    keeps_originals: bool = False
    skip: tuple[str, ...] = DELICATE
    linear_only: bool = False
    ahead: int = 0
    pinned: bool = False
    buffers: int = 0
    largest_first: bool = False
    stays: bool = False

    @property
    def streams(self) -> bool:
        """Whether some weights are not resident."""
        return self.resident is not None


EVERYTHING = Placement()
"""All weights on the device, for the turn."""


@dataclass(frozen=True)
class Layout:
    """A placement worked out for a trace; sizes in bytes, by index of the weight or the module.

    Attributes:
        stored: of every weight, on the device or on its way there.
        cast: of every weight while its layer computes; 0 = it is used as it is stored.
        resident: indices of weights that are there for the whole turn.
        units: the weights that come with a module, for every module that brings some.
    """

    stored: tuple[int, ...]
    cast: tuple[int, ...]
    resident: tuple[int, ...]
    units: dict[int, tuple[int, ...]]
    casts: dict[int, tuple[int, ...]]
    keeps_codes: bool = False
    drops_codes: bool = False
    decoding: int = 0
    buffers: int = 0

    @property
    def resident_bytes(self) -> int:
        """Bytes of the resident weights as they are stored."""
        return sum(self.stored[index] for index in self.resident)

    @property
    def streamed_bytes(self) -> int:
        """Bytes of the others."""
        return sum(self.stored[i] for weights in self.units.values() for i in weights)

    @property
    def original_bytes(self) -> int:
        """Bytes of the weights that FP8 stands for, as they were."""
        return sum(self.cast)

    @property
    def largest_unit(self) -> int:
        """Most bytes that come at once."""
        return max((self.unit_bytes(module) for module in self.units), default=0)

    def unit_bytes(self, module: int) -> int:
        """Bytes that come with ``module``."""
        return sum(self.stored[index] for index in self.units.get(module, ()))


@lru_cache(maxsize=64)
def layout(trace: Trace, placement: Placement) -> Layout:
    """``placement`` worked out for ``trace``."""
    coded: frozenset[int] = frozenset()
    if placement.fp8:
        known = placement.coded
        coded = fp8_weights(trace, placement) if known is None else known
    stored = tuple(
        weight.numel * FP8_BYTES if index in coded else weight.nbytes
        for index, weight in enumerate(trace.weights)
    )
    cast = tuple(w.nbytes if i in coded else 0 for i, w in enumerate(trace.weights))
    everything = range(len(trace.weights))
    resident = tuple(everything) if placement.resident is None else tuple(placement.resident)
    if placement.largest_first:
        resident = _by_leaf(trace, stored, resident)
    units: dict[int, list[int]] = {}
    held = set(resident)
    for index in everything:
        if index not in held:
            units.setdefault(unit_of(trace, index, placement.unit), []).append(index)
    casts: dict[int, list[int]] = {}
    for index in sorted(coded):
        casts.setdefault(trace.weights[index].owner, []).append(index)
    return Layout(
        stored,
        cast,
        resident,
        {module: tuple(weights) for module, weights in units.items()},
        {module: tuple(weights) for module, weights in casts.items()},
        placement.keeps_codes,
        placement.drops_codes,
        placement.decoding,
        placement.buffers,
    )


def _by_leaf(trace: Trace, stored: tuple[int, ...], resident: tuple[int, ...]) -> tuple[int, ...]:
    """The weights in the order of their leaves' bytes, the largest first."""
    sizes: dict[int, int] = {}
    for index in resident:
        owner = trace.weights[index].owner
        sizes[owner] = sizes.get(owner, 0) + stored[index]

    def place(index: int) -> tuple[int, str, int]:
        owner = trace.weights[index].owner
        return sizes[owner], trace.modules[owner][0], -index

    return tuple(sorted(resident, key=place, reverse=True))


def fp8_weights(trace: Trace, placement: Placement) -> frozenset[int]:
    """Indices of the weights FP8 storage takes: matrices of layers that no pattern spares."""
    patterns = [re.compile(pattern) for pattern in placement.skip]
    kinds = MATRIX_LAYERS[:1] if placement.linear_only else MATRIX_LAYERS
    found = set()
    for index, weight in enumerate(trace.weights):
        path, kind, _ = trace.modules[weight.owner]
        matrix = weight.parameter and weight.dimensions >= 2 and weight.nbytes > weight.numel
        spared = any(pattern.search(path) for pattern in patterns)
        if matrix and kind in kinds and not spared:
            found.add(index)
    return frozenset(found)


def unit_of(trace: Trace, weight: int, unit: str) -> int:
    """The module whose forward brings a streamed weight."""
    owner = trace.weights[weight].owner
    _, kind, parent = trace.modules[owner]
    if unit == BLOCK:
        return _block_of(trace, owner)
    if unit == PARENT and kind not in MATRIX_LAYERS:
        return parent
    return owner


def _block_of(trace: Trace, module: int) -> int:
    """The outermost item of a module list around ``module``; the root where there is none."""
    found = 0
    while module:
        _, _, parent = trace.modules[module]
        if trace.modules[parent][1] in ("ModuleList", "Sequential"):
            found = module
        module = parent
    return found

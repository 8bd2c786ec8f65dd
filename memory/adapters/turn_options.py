"""What the components of a diffusers pipeline may do in their turns, for the planner to choose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..levels import MemoryOptimizationConfig
from ..planner.ladder import TILES
from ..planner.placement import LEAF, PARENT, Placement, unit_of
from ..planner.planner import Limits, Option, choose
from ..planner.predict import DECODE, DENOISE, Turn
from ..planner.schedule import Rates
from ..planner.trace import Trace
from ..planner.turns import TurnsPlan, choose_turns
from ..strategies import exact_tiling
from .diffusers_traces import PipelineTraces

CHUNKS = (4096, 1024, 256)
"""Tokens at once through feed-forward layers, tried where a denoiser does not fit otherwise."""
_AHEAD = (1,)
"""Groups that diffusers' hooks copy ahead."""


class TurnOptions:
    """Options by component, each traced when it is first asked for.

    Args:
        config: what was set by hand; everything on the device, and nothing in tiles unless so.
    """

    def __init__(self, traces: PipelineTraces, config: MemoryOptimizationConfig) -> None:
        self._traces = traces
        self._fp8 = config.fp8_storage
        self._config = config.replace(
            fp8_storage=False, compute_dtype=None, keep_originals=True
        )  # of weights, which no trace has
        self.run = traces.turns(self._config)
        """Every turn of a run, with everything resident."""
        self.plain = {turn.name: self._option(turn, {}) for turn in self.run}

    def best(self, limits: Limits, rates: Rates, **costs: Any) -> TurnsPlan:
        """The plan within ``limits``; ``costs`` as ``choose_turns`` takes them.

        Smaller ways are traced for components that do not fit in their plain one, or whose decode
        would have to be streamed.
        """
        components = {name: [option] for name, option in self.plain.items()}
        for name, found in components.items():
            alone = choose([found], limits, rates, **costs)
            decodes = found[0].turn.stage == DECODE
            if not alone.fits or (decodes and alone.choices[0].how != "resident"):
                found += self.smaller(name)
        return choose_turns(self.run, components, limits, rates, **costs)

    def smaller(self, name: str) -> Iterator[Option]:
        """Ways of a component that take less than its plain one besides its weights."""
        stage = self.plain[name].turn.stage
        changes: Iterator[dict[str, Any]] = iter(())
        if stage == DECODE:
            changes = self._cuts()
        elif stage == DENOISE and self._config.forward_chunk_size is None:
            changes = ({"forward_chunk_size": tokens} for tokens in CHUNKS)
        for change in changes:
            turns = self._traces.turns(self._config.replace(**change))
            yield self._option(next(turn for turn in turns if turn.name == name), change)

    def _cuts(self) -> Iterator[dict[str, Any]]:
        config, work = self._config, self._traces.work
        sliced: dict[str, Any] = {}
        if work.batch > 1 and not config.enable_vae_slicing:
            sliced = {"enable_vae_slicing": True, "vae_decode_chunk_size": 1}
            yield sliced
        if config.enable_vae_tiling and config.vae_tile_size is not None:
            return
        for tile in TILES:
            if tile < max(work.width, work.height):
                yield {**sliced, "enable_vae_tiling": True, "vae_tile_size": tile}

    def _option(self, turn: Turn, changes: dict[str, Any]) -> Option:
        decodes = turn.stage == DECODE
        base = turn.placement
        placement = Placement(
            _used(turn.trace) if decodes else None,
            LEAF if decodes else PARENT,
            skip=base.skip,
            linear_only=base.linear_only,
        )
        calls = turn.calls * sum(one.name == turn.name for one in self.run)
        return Option(
            replace(
                turn, placement=placement, calls=calls, resting=None, after=None, lingers=False
            ),
            changes,
            fp8=self._fp8 and turn.stage == DENOISE,
            partial=not decodes,
            depths=() if decodes else _AHEAD,
            loses=decodes and self._blends(turn.name, changes),
        )

    def _blends(self, name: str, changes: dict[str, Any]) -> bool:
        config = self._config.replace(**changes)
        exact = exact_tiling.wanted(config) and exact_tiling.known(self._traces.parts[name])
        return config.enable_vae_tiling and not exact


def _used(trace: Trace) -> frozenset[int] | None:
    """Weights of the children that a call enters; ``None`` = of all: an encoder is left out."""
    read = {weight for operation in trace.operations for weight in operation.weights}
    children = {_child(trace, index) for index in read}
    found = frozenset(i for i in range(len(trace.weights)) if _child(trace, i) in children)
    return None if len(found) == len(trace.weights) else found


def _child(trace: Trace, weight: int) -> str:
    return trace.weights[weight].name.partition(".")[0]


def paths_of(turn: Turn) -> frozenset[str] | None:
    """The modules whose weights stay for the turn; ``None`` = all, as hooks take them."""
    resident = turn.placement.resident
    if resident is None:
        return None
    trace = turn.trace
    if turn.stage == DECODE:
        return frozenset(_child(trace, index) for index in resident)
    units = turn.placement.unit
    return frozenset(trace.modules[unit_of(trace, index, units)][0] for index in resident)

"""What a planner may choose from for each component: the VAE's tiles, FP8, a split batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

from ..levels import MemoryOptimizationConfig
from ..planner.ladder import TILES
from ..planner.orders import ORDERS
from ..planner.placement import Placement
from ..planner.planner import Option
from ..planner.predict import DECODE, DENOISE, Turn
from ..planner.work import Work


class Traces(Protocol):
    """What a host's traces give: a run's turns under a configuration."""

    @property
    def work(self) -> Work: ...

    def turns(self, config: MemoryOptimizationConfig) -> list[Turn]: ...


def options_of(
    traces: Traces,
    config: MemoryOptimizationConfig,
    *,
    split: Traces | None = None,
    orders: tuple[str, ...] = ORDERS,
) -> list[list[Option]]:
    """Options of every component, in order of work; each component once.

    Args:
        split: the same run with one sample at a time through the denoiser.
        orders: in which the host can choose what is resident.
    """
    plain = config.replace(offload="none", enable_vae_tiling=False, vae_tile_size=None)
    found: dict[str, list[Option]] = {}
    for turn in traces.turns(plain):
        if turn.name not in found:
            found[turn.name] = [_option(turn, {}, orders)]
    if split is not None:
        for turn in split.turns(plain):
            if turn.stage == DENOISE:
                twice = replace(turn, calls=turn.calls * 2)
                found[turn.name].append(_option(twice, {"samples at once": 1}, orders))
    for changes in _tiles(traces.work):
        for turn in traces.turns(plain.replace(**changes)):
            if turn.stage == DECODE:
                found[turn.name].append(_option(turn, changes, orders))
    return list(found.values())


def _option(turn: Turn, changes: dict[str, Any], orders: tuple[str, ...]) -> Option:
    base = turn.placement
    placement = Placement(
        skip=base.skip,
        linear_only=base.linear_only,
        keeps_codes=base.keeps_codes,
        coded=base.coded,
        buffers=base.buffers,
        unit=base.unit,
    )
    alone = replace(turn, placement=placement, resting=None, after=None, lingers=False)
    return Option(alone, changes, fp8=turn.stage == DENOISE, orders=orders)


def _tiles(work: Work) -> Iterator[dict[str, Any]]:
    for tile in TILES:
        if tile < max(work.width, work.height):
            yield {"enable_vae_tiling": True, "vae_tile_size": tile}

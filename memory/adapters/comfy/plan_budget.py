"""What models do under a budget once it has been measured: as ``sampling`` and ``budget`` settle.

A first run begins with so few weights that it fits whatever an estimate is worth, and measures what
a step needs beside them; from then on the weights fill what the budget leaves. Foreseen is what it
comes to. Where not even everything streamed fits, the turn is left as it would be refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...planner.allocator import ROUNDING
from ...planner.loader import Loader, padding, without
from ...planner.policy import under_cap
from ...planner.predict import Turn, predict
from ...planner.replay import Replay
from .limits import streaming_bytes, streams_all
from .measured import SLACK

_CAUTION = 1.5
"""As ``sampling`` and ``vae`` have it: times an estimate of the core's before it is trusted."""


def sampling_turn(
    options: Sequence[Turn], budget: int, loader: Loader, start: int, factor: float
) -> Turn:
    """The denoiser's turn under ``budget``.

    Args:
        options: all conds in one batch, then one after the other.
        start: bytes of weights the first step begins with.
        factor: of workspaces, see ``Replay``.
    """
    found = options[0]
    for found in options:
        if peak_of(streamed(found, loader), factor) <= budget:
            break
    else:
        return streamed(found, loader)
    first = capped(found, start, loader)
    beside = _beside(first, factor)
    grown = _grown(found, first, budget - SLACK - beside, loader)
    # What the rest of the first run measured counts as well; the next one begins with it.
    return capped(found, budget - SLACK - max(beside, _beside(grown, factor)), loader)


def _beside(turn: Turn, factor: float) -> int:
    return peak_of(turn, factor) - turn.layout.resident_bytes


def _grown(turn: Turn, first: Turn, room: int, loader: Loader) -> Turn:
    """What is resident after the first step: ``room`` filled, and left as far as the allocator
    added to the weights."""
    filled = capped(turn, room, loader)
    more = _rounding(filled) - _rounding(first)
    resident = filled.placement.resident
    if more <= 0 or resident is None:
        return filled
    stored = filled.layout.stored
    surplus = filled.layout.resident_bytes - (room - more - padding(stored))
    left = without(filled.trace, stored, resident, surplus)
    return replace(filled, placement=replace(filled.placement, resident=left))


def _rounding(turn: Turn) -> int:
    """Bytes the allocator adds to resident weights."""
    replay, layout = Replay(), replace(turn.layout, buffers=0)
    replay.hold(layout)
    return replay.allocator.allocated - layout.resident_bytes


def start_of(patcher: Any, shape: Sequence[int], budget: int) -> int:
    """Bytes of weights a first step under ``budget`` begins with; ``shape`` is the latent's."""
    wanted = int(patcher.model.memory_required([2 * shape[0], *shape[1:]]))
    return max(0, budget - streaming_bytes(patcher) - int(_CAUTION * wanted))


def whole_or_streamed(
    turn: Turn, budget: int, loader: Loader, factor: float, estimate: int | None = None
) -> Turn:
    """A turn whose weights are used about once: all of them there if they fit, else none.

    Args:
        estimate: bytes beside them that a first run is allowed for; ``None`` = it streams.
    """
    lean = streamed(turn, loader)
    beside = 0 if turn.on_host else peak_of(lean, factor)
    size = sum(-(-nbytes // ROUNDING) * ROUNDING for nbytes in turn.layout.stored)
    fits = budget - beside - SLACK >= size
    if estimate is not None:
        fits = fits or budget - estimate >= size
    return replace(turn, on_host=False) if fits else lean


def partly(turn: Turn, budget: int, loader: Loader, factor: float) -> Turn:
    """A turn that streams, with what the budget leaves resident: it comes again soon."""
    room = budget - SLACK - peak_of(turn, factor)
    every = replace(turn.placement, resident=None)
    return capped(replace(turn, placement=every), room, loader)


def vae_estimate(asked: Any) -> int:
    """Bytes a first decode or encode is allowed for beside the weights."""
    need = int(asked.job.need)
    return need if asked.job.strips is not None else int(_CAUTION * need)


def vae_room(vae: Any, budget: int) -> int:
    """Bytes a VAE's work may take under ``budget``, as ``vae_room`` reckons."""
    patcher = vae.patcher
    there = streaming_bytes(patcher) if may_stream(vae) else int(patcher.model_size())
    return budget - there


def may_stream(vae: Any) -> bool:
    """Whether its weights are streamed where a budget is short: see ``budget.under``."""
    return not getattr(vae, "disable_offload", False) and streams_all(vae.patcher.model)


def streamed(turn: Turn, loader: Loader) -> Turn:
    """The turn with nothing resident."""
    return capped(turn, 0, loader)


def capped(turn: Turn, cap: int, loader: Loader) -> Turn:
    """The turn with at most ``cap`` bytes of weights resident."""
    if turn.placement.streams:
        cap = min(cap, turn.layout.resident_bytes)
    every = replace(turn.placement, resident=None)
    return replace(turn, placement=under_cap(turn.trace, every, cap, loader))


def peak_of(turn: Turn, factor: float) -> int:
    """Bytes allocated at the turn's peak, nothing else on the device."""
    return predict([turn], workspace_factor=factor).peak_allocated

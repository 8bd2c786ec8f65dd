"""Which level a graph's models get: the fastest predicted to fit, and when to think again.

A prediction whose traces are not recorded yet is left for after the prompt: none waits for one.
What was decided is kept by node, so that Optimize Pipeline runs again only where the answer would
be another one: the size changed, what is in force no longer fits or ran out of memory, or it can
be predicted by now.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ... import backend, candidates, foresight, learning
from ...errors import BudgetError, ConfigError
from ...fitting import fastest_that_fits
from ...foresight import Chosen, Foreseen, TooSlow, Unpredicted
from ...later import planning
from ...levels import MemoryOptimizationConfig, OptimizationLevel
from ...verified import Verified
from . import dynamic, foretold, profiling, runs
from .patchers import is_dynamic

if TYPE_CHECKING:
    from .plan_foresight import LoadedForesight

logger = logging.getLogger("lowtide")

MOST_NODES = 64
_PLANNER = f"{__package__}.plan_foresight"
_SIZE = "how large the image will be is not told by the graph before it runs"
_PAGED = "ComfyUI's DynamicVRAM places the weights itself, page by page"


@dataclass
class _Decision:
    """What a node was given last.

    Attributes:
        config: as it was asked for; ``None`` = a level by name, which nothing changes.
        foreseen: ``None`` where it was not predicted.
        turn: how often it had to be asked again.
    """

    config: MemoryOptimizationConfig | None
    run: runs.Run | None
    level: str
    foreseen: Foreseen | None
    turn: int
    ways: tuple[Foreseen, ...] = ()
    """What could be predicted once the prompt was over."""


_lock = threading.Lock()
_decisions: OrderedDict[str, _Decision] = OrderedDict()
_ran: dict[str, str | None] = {"whole": None}
"""The name of the last graph, if it ran to its end."""
_pending: dict[str, Callable[[], None]] = {}
_idle = threading.Event()
_idle.set()
_PATIENCE = 60.0
"""Seconds that preparing waits for a prompt to end before it goes on beside it."""


def choose(
    config: MemoryOptimizationConfig,
    *,
    model: Any,
    clip: Any,
    vae: Any,
    device: torch.device,
    node: str | None,
) -> Chosen:
    """What ``config`` comes to for these models in the graph that runs.

    A level chosen by name stays; what its run needs is foretold where that is known already, and
    nothing is asked at NONE without a budget. Never raises but for what a user has to change.

    Raises:
        BudgetError: nothing keeps the budget. ConfigError: a level that is needed excludes a
            setting made by hand.
    """
    wanted = foresight.wants(config)
    fastest = config.requested_level is OptimizationLevel.FASTEST and device.type != "cpu"
    if node is not None and not fastest:
        _remember(node, None, None, None)
    if device.type == "cpu" or (config.level is OptimizationLevel.NONE and not wanted):
        return Chosen(config)
    run = runs.current(node)
    foreseen: Foreseen | None = None
    parts = {"model": model, "clip": clip, "vae": vae}
    try:
        if not fastest and _PLANNER not in sys.modules:
            # Importing the planner and reading traces takes a while, and nothing hangs on it here.
            raise TooSlow("nothing was predicted in this process yet")
        foresee = _foresight(run, device, parts)
        if fastest:
            settled = foresight.settle(config, foresee, free=usable(device), size=foresee.size)
            foreseen, notes = settled.foreseen, [f"{settled.note()}, for {foresee.what()}"]
        else:
            foreseen, notes = foresee(config), []
    except BudgetError:
        if fastest:
            raise
        notes = []  # the run itself says so, by what it measures
    except Unpredicted as why:
        notes = [config.reason, foresight.instead(config, why)] if fastest else []
        if run is not None and isinstance(why, TooSlow) and wanted:
            _prepare_later(node, run, device, parts, config)
    if fastest and node is not None:
        _remember(node, config, run, foreseen)
    if foreseen is None:
        return Chosen(config, notes)
    return Chosen(foreseen.config, notes, _foretell(foreseen), True)


def fingerprint(node: str | None) -> str:
    """Changes when ``choose`` should be asked again for a node; never raises.

    For the node's IS_CHANGED: it is called before every prompt, and costs milliseconds.
    """
    try:
        with _lock:
            known = _decisions.get(node or "")
        if known is None or known.config is None:
            return "0" if known is None else str(known.turn)
        named = runs.name(runs.graph())
        with _lock:
            unchanged = named == _ran["whole"]
        # A graph that ran to its end and comes again runs nothing, whatever could be chosen now.
        if unchanged:
            return str(known.turn)
        if _is_out(known, runs.current(node)):
            with _lock:
                known.turn += 1
        return str(known.turn)
    except Exception:  # ComfyUI asks this before any node runs
        logger.exception("whether node %s has to be asked again is not known", node)
        return "0"


def before_prompt() -> None:
    """A prompt begins: what is left for later waits."""
    _idle.clear()
    profiling.device.before_prompt()


def after_prompt(done: bool) -> None:
    """The prompt is over: what could not be predicted in it is prepared for the next one.

    Args:
        done: whether it ran to its end.
    """
    _idle.set()
    with _lock:
        chosen = any(known.config is not None for known in _decisions.values())
    named = runs.name(runs.graph()) if done and chosen else None
    with _lock:
        _ran["whole"] = named
        pending = dict(_pending)
        _pending.clear()
    for node, prepare in pending.items():
        planning.do(f"node {node}", prepare)
    profiling.device.after_prompt(_decide_anew)


def forget() -> None:
    """Decide as if nothing had been asked before."""
    _idle.set()
    profiling.device.forget()
    with _lock:
        _decisions.clear()
        _pending.clear()
        _ran["whole"] = None
    foretold.forget()


def _decide_anew() -> None:
    """The device was measured: a graph that changes is decided on by its own figures."""
    with _lock:
        for known in _decisions.values():
            known.run, known.foreseen, known.ways = None, None, ()


def usable(device: torch.device) -> int | None:
    """Bytes of the device this process may use in all: free, or held by itself."""
    info = backend.mem_get_info(device)
    if info is None:
        return None
    return info[0] + (backend.reserved(device) or 0) + dynamic.pages(device)


def _foresight(
    run: runs.Run | None, device: torch.device, parts: dict[str, Any]
) -> LoadedForesight:
    patchers = [getattr(part, "patcher", part) for part in parts.values() if part is not None]
    if any(is_dynamic(patcher) for patcher in patchers):
        raise Unpredicted(_PAGED)
    if run is None:
        raise Unpredicted(_SIZE)
    from .plan_foresight import LoadedForesight

    return LoadedForesight(run, device, **parts)


def _foretell(foreseen: Foreseen) -> list[Verified]:
    told = foresight.expect(foreseen, foresight.recall(foreseen.config))
    for stage in foreseen.prediction.stages:
        foretold.remember(stage.key, stage.stage, learning.foretold(stage.key, stage.stage))
    return told


def _remember(
    node: str,
    config: MemoryOptimizationConfig | None,
    run: runs.Run | None,
    foreseen: Foreseen | None,
) -> None:
    with _lock:
        before = _decisions.pop(node, None)
        turn = 0 if before is None else before.turn
        chosen = config if foreseen is None else foreseen.config
        level = "" if chosen is None else chosen.level.value
        _decisions[node] = _Decision(config, run, level, foreseen, turn)
        while len(_decisions) > MOST_NODES:
            _decisions.popitem(last=False)


def _is_out(known: _Decision, run: runs.Run | None) -> bool:
    """Whether a decision no longer holds."""
    assert known.config is not None
    if run != known.run:
        return True
    free = _free_now()
    if free is None or (known.foreseen is None and not known.ways):
        return False
    budget = known.config.budget_bytes
    limit = free if budget is None else min(free, budget)
    history = foresight.recall(known.config)
    if known.foreseen is not None:
        return not fastest_that_fits([known.foreseen.prediction], limit, history).fits
    best = fastest_that_fits([way.prediction for way in known.ways], limit, history).prediction
    if best.level != known.level:
        return True
    # What is in force by the device's size is what would be chosen: it stays, foretold from now on.
    known.foreseen = next(way for way in known.ways if way.prediction is best)
    _foretell(known.foreseen)
    return False


def _free_now() -> int | None:
    import comfy.model_management as mm

    return usable(backend.device_of(mm.get_torch_device()))


def _prepare_later(
    node: str | None,
    run: runs.Run,
    device: torch.device,
    parts: dict[str, Any],
    config: MemoryOptimizationConfig,
) -> None:
    """Have what is missing recorded after the prompt, unless the models are gone by then."""
    held = {name: weakref.ref(part) for name, part in parts.items() if part is not None}
    chosen = config.requested_level is OptimizationLevel.FASTEST

    def prepare() -> None:
        there = {name: ref() for name, ref in held.items()}
        if any(part is None for part in there.values()):
            return
        found = _foresight(run, device, there)
        try:
            levels = list(candidates.levels_from(config)) if chosen else [config]
        except ConfigError:
            levels = [config]
        for level in levels:  # the next prompt is not to be slowed, unless one follows another
            _idle.wait(_PATIENCE)
            found.prepare([level])
        ways = tuple(found(level) for level in levels)
        if not chosen:
            _foretell(ways[0])
        with _lock:
            known = _decisions.get(node or "")
            if known is not None and known.foreseen is None:
                known.ways = ways

    with _lock:
        _pending[node or ""] = prepare

"""Which configuration a diffusers pipeline gets for a run: by prediction, else by estimate.

A configuration asked for by name is taken as it is; FASTEST and a budget are settled here, where
the pipeline and the size of its images are known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from .. import backend, candidates, foresight, monitor_rows, profiles
from ..errors import BudgetError, ConfigError
from ..foresight import Chosen, TooSlow, Unpredicted
from ..levels import MemoryOptimizationConfig, OptimizationLevel
from ..planner.planner import MARGIN
from ..planner.work import Work
from ..strategies import budget
from . import comfy
from .diffusers import modules_of
from .pipeline_plan import plan_batch
from .pipeline_plans import PipelineForesight, foreseen, key_of_run

_TIMES_PLANNED = 2
"""The second time with what past runs of the first plan were seen to need."""


def usual(pipe: Any, parts: Mapping[str, torch.nn.Module]) -> Work:
    """A run of the pipeline's default size."""
    edge = max(16, budget.edge_of(pipe, parts))
    return Work(edge, edge)


def choose(
    config: MemoryOptimizationConfig,
    pipe: Any,
    parts: Mapping[str, torch.nn.Module],
    device: torch.device,
    work: Work | None = None,
    *,
    in_parts: bool = False,
) -> Chosen:
    """What ``config`` comes to for a run of ``pipe``.

    Args:
        work: the run; ``None`` = one image of the pipeline's default size.
        in_parts: whether a batch that does not fit a budget may be made in parts.

    Raises:
        BudgetError: no level keeps the budget; the message names the smallest.
        ConfigError: a level that is needed excludes a setting made by hand.
    """
    asked = work or usual(pipe, parts)
    if device.type == "cpu":
        return _estimated(config, pipe, parts, work, [])
    if not foresight.wants(config):
        return _by_hand(config, pipe, device, asked)
    if config.budget_bytes is not None:
        planned = _planned(config, pipe, device, asked, in_parts)
        if planned is not None:
            return planned
    try:
        foresee = PipelineForesight(pipe, asked, device)
    except Unpredicted as why:
        return _estimated(config, pipe, parts, work, [foresight.instead(config, why)])
    try:
        settled = foresight.settle(
            config, foresee, free=usable(device), size=(asked.height, asked.width)
        )
    except Unpredicted as why:
        found = _estimated(config, pipe, parts, work, [foresight.instead(config, why)])
        if not isinstance(why, TooSlow):
            return found
        levels = lambda: candidates.levels_from(config)  # noqa: E731
        return replace(found, prepare=_preparing(pipe, device, asked, levels))
    told = foresight.expect(settled.foreseen, foresight.recall(config), whole=True)
    size = f"{asked.width} x {asked.height} pixels"
    if asked.batch > 1:
        size += f", {asked.batch} images at once"
    left = settled.left_out
    prepare = _preparing(pipe, device, asked, lambda: left) if left else None
    return Chosen(settled.config, [f"{settled.note()}, for {size}"], told, True, prepare)


def ran_out(
    config: MemoryOptimizationConfig, pipe: Any, device: torch.device, work: Work | None
) -> None:
    """Remember that ``config`` could not even be applied: the weights alone were too much."""
    run = work or usual(pipe, modules_of(pipe))
    images = (run.batch, run.height, run.width)
    monitor_rows.ran_out(pipe, config, device, images, usable(device))


def usable(device: torch.device) -> int | None:
    """Bytes of the device this process may use in all: free, or held by itself."""
    info = backend.mem_get_info(device)
    return None if info is None else info[0] + (backend.reserved(device) or 0)


def _planned(
    config: MemoryOptimizationConfig, pipe: Any, device: torch.device, work: Work, in_parts: bool
) -> Chosen | None:
    """A budget's plan, made anew with more kept free where past runs of it needed more.

    ``None`` where there is none, or where what is free is what it does not fit.
    """
    if not comfy.present():  # there a prompt would wait; published figures do until it is measured
        profiles.measured(device)
    budget_bytes = config.budget_bytes or 0
    free = usable(device) if config.requested_level is OptimizationLevel.FASTEST else None
    limit = budget_bytes if free is None else min(budget_bytes, free)
    asked, history, margin = config.replace(budget_bytes=limit), foresight.recall(config), MARGIN
    plan = None
    for _ in range(_TIMES_PLANNED):
        try:
            plan, images = plan_batch(pipe, asked, work, device, margin, in_parts=in_parts)
        except BudgetError:
            if limit < budget_bytes:
                return None
            raise
        if plan is None:
            return None
        chosen = plan.config.replace(budget_bytes=budget_bytes)
        key = key_of_run(pipe, chosen, replace(work, batch=images), device)
        way = foreseen(chosen, plan.prediction, key)
        more = [history.correction(key, it.stage) for it in way.prediction.stages if history]
        need = max(
            (it.peak * by for it, by in zip(way.prediction.stages, more, strict=False)), default=0
        )
        if need <= limit:
            break
        margin = need / plan.prediction.peak_allocated - 1 + MARGIN
    assert plan is not None
    told = foresight.expect(way, history, whole=True)
    notes = [*([config.reason] if config.reason else []), plan.note]
    return Chosen(chosen, notes, told, True, plan=plan, images=images)


def _by_hand(
    config: MemoryOptimizationConfig, pipe: Any, device: torch.device, work: Work
) -> Chosen:
    """As it was asked for; its prediction where that is known already. NONE is left in peace."""
    notes = [config.reason] if config.reason else []
    if config.level is OptimizationLevel.NONE:
        return Chosen(config, notes)
    try:
        foreseen = PipelineForesight(pipe, work, device, patience=0)(config)
    except Unpredicted:
        return Chosen(config, notes)
    return Chosen(config, notes, foresight.expect(foreseen, foresight.recall(config), whole=True))


def _estimated(
    config: MemoryOptimizationConfig,
    pipe: Any,
    parts: Mapping[str, torch.nn.Module],
    work: Work | None,
    notes: list[str],
) -> Chosen:
    """By the device's size, and by estimates under a budget."""
    if config.budget_bytes is None:
        return Chosen(config, [*([config.reason] if config.reason else []), *notes])
    edge = None if work is None else budget.edge_of_area(work.width, work.height)
    images = 1 if work is None else work.batch
    found, note = budget.fit(config, pipe, parts, edge=edge, images=images)
    first = [found.reason] if found.reason else []
    return Chosen(found, [*first, *notes, *([note] if note else [])])


def _preparing(
    pipe: Any,
    device: torch.device,
    work: Work,
    configs: Callable[[], Iterable[MemoryOptimizationConfig]],
) -> Callable[[], None]:
    def prepare() -> None:
        with contextlib.suppress(ConfigError):  # a level that excludes a setting made by hand
            PipelineForesight(pipe, work, device).prepare(configs())

    return prepare

"""Settles a configuration by what its runs are predicted to need, corrected by what past ones did.

``settle`` is asked where a configuration is applied, because only then the model is known. What
predicts is the host's: pipelines in ``adapters/pipeline_plans.py``, ComfyUI's models in
``adapters/comfy``. No torch here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import candidates, learning
from .errors import BudgetError, LowtideError
from .fitting import Choice, Learned, Prediction, fastest_that_fits
from .levels import MemoryOptimizationConfig, OptimizationLevel
from .recall import Recall
from .stage_names import DECODING
from .units import format_bytes, givable
from .verified import Verified

if TYPE_CHECKING:
    from .adapters.pipeline_plan import PipelinePlan

logger = logging.getLogger("lowtide")

WHOLE = "all"
"""The stage that stands for the whole run."""

_WHOLE_COMPONENTS = (OptimizationLevel.NONE, OptimizationLevel.BALANCED)
"""Levels at which nothing is faster than what fits first."""

_WRITER_SECONDS = 0.05
"""What a decision waits at most for rows of the last run that are on their way to the history."""


class Unpredicted(LowtideError):
    """Why a run cannot be predicted now; one sentence, with what happens instead."""


class TooSlow(Unpredicted):
    """What a prediction needs is missing, and can be made, given time."""


@dataclass(frozen=True)
class Foreseen:
    """A configuration, and what a run under it is predicted to need, before any correction."""

    config: MemoryOptimizationConfig
    prediction: Prediction


Foresee = Callable[[MemoryOptimizationConfig], Foreseen]
"""Predicts a run under a configuration; raises :class:`Unpredicted`."""


@dataclass(frozen=True)
class Settled:
    """What was chosen, and why.

    Attributes:
        foreseen: the configuration and its prediction.
        choice: what was made of the predictions; ``reason`` is a sentence for people.
        limit: bytes that were there to use.
        seconds: that the decision took.
        left_out: what might have fitted too, and could not be predicted in time.
    """

    foreseen: Foreseen
    choice: Choice
    limit: int
    seconds: float
    left_out: tuple[MemoryOptimizationConfig, ...] = ()

    @property
    def config(self) -> MemoryOptimizationConfig:
        """The configuration to apply."""
        return self.foreseen.config

    def note(self) -> str:
        """The reason and what it cost to find, for people."""
        reason = self.choice.reason
        if self.config.vae_tile_size is not None:
            reason += f"; VAE tiles of {self.config.vae_tile_size} pixels"
        return f"{reason} (predicted in {self.seconds * 1000:.0f} ms)"


@dataclass(frozen=True)
class Chosen:
    """The configuration to apply to a model, by prediction or not.

    Attributes:
        notes: why, sentences for people.
        stages: what a run is predicted to need; empty where that is not known.
        predicted: whether predictions settled it.
        prepare: records what was missing for that; for after the run. ``None``: nothing was.
        plan: a budget's plan, where each component has a share of the device.
        images: how many of the run's are to be made at once; ``None`` = as many as it has.
    """

    config: MemoryOptimizationConfig
    notes: list[str] = field(default_factory=list)
    stages: list[Verified] = field(default_factory=list)
    predicted: bool = False
    prepare: Callable[[], None] | None = None
    plan: PipelinePlan | None = None
    images: int | None = None

    def runs(self) -> MemoryOptimizationConfig:
        """What is to be applied: what was predicted, and nothing that would use what is left.

        A plan counts on its VAE to keep maps on the device as far as the budget leaves room.
        """
        if not self.predicted or (self.plan is not None and self.plan.shares):
            return self.config
        return self.config.replace(budget_bytes=None)


def wants(config: MemoryOptimizationConfig) -> bool:
    """Whether a configuration is settled by prediction: at FASTEST, or under a budget."""
    fastest = config.requested_level is OptimizationLevel.FASTEST
    return fastest or config.budget_bytes is not None


def settle(
    asked: MemoryOptimizationConfig,
    foresee: Foresee,
    *,
    free: int | None,
    size: tuple[int, int],
) -> Settled:
    """The fastest configuration that ``asked`` allows and whose predicted peak fits.

    Under a budget it must fit that; at FASTEST also ``free``, what this process may use of the
    device in all, what it holds included. Smaller tiles are tried where only the decode is too
    large.

    Args:
        size: height and width of the image, in pixels.

    Raises:
        Unpredicted: a prediction, or what is free, is not known.
        BudgetError: nothing fits the budget; the message names the smallest that would do.
        ConfigError: a level that is needed excludes a setting made by hand.
    """
    started = time.perf_counter()
    fastest = asked.requested_level is OptimizationLevel.FASTEST
    limits = [asked.budget_bytes, free if fastest else None]
    known = [limit for limit in limits if limit is not None]
    if not known:
        raise Unpredicted("the device does not say how much of it is free")
    limit, history = min(known), recall(asked)
    ways: list[Foreseen] = []
    left_out: list[MemoryOptimizationConfig] = []
    for config in candidates.levels_from(asked):
        way = foresee(config)
        ways.append(way)
        if not _fits(way, limit, history) and _only_decoding(way, limit, history):
            for cut in candidates.smaller_tiles(config, *size):
                try:
                    way = foresee(cut)
                except TooSlow:
                    left_out.append(cut)
                    break
                ways.append(way)
                if _fits(way, limit, history):
                    break
        if config.level in _WHOLE_COMPONENTS and _fits(way, limit, history):
            break  # what streams layer by layer is slower
    choice = fastest_that_fits([way.prediction for way in ways], limit, history)
    found = next(way for way in ways if way.prediction is choice.prediction)
    if not choice.fits and asked.budget_bytes is not None and choice.needed > asked.budget_bytes:
        raise _too_small(asked.budget_bytes, choice, size)
    seconds = time.perf_counter() - started
    return Settled(found, choice, limit, seconds, tuple(left_out))


def recall(config: MemoryOptimizationConfig) -> Learned | None:
    """What past runs taught, unless nothing is to be learnt here."""
    if not (config.history and learning.active()):
        return None
    learning.flush(_WRITER_SECONDS)
    return Recall(learning.history())


def expect(foreseen: Foreseen, history: Learned | None, *, whole: bool = False) -> list[Verified]:
    """Remember what a run is foretold, for its rows in the history; and say it.

    Args:
        whole: whether the history has a row for the run as a whole, too.
    """
    told: list[Verified] = []
    for stage in foreseen.prediction.stages:
        by = 1.0 if history is None else history.correction(stage.key, stage.stage)
        corrected = int(stage.peak * by)
        learning.expect(stage.key, stage.stage, stage.peak, stage.seconds, corrected)
        told.append(Verified(stage.stage, corrected))
    if whole and foreseen.prediction.stages:
        stages = foreseen.prediction.stages
        seconds = [stage.seconds for stage in stages if stage.seconds is not None]
        learning.expect(
            stages[0].key,
            WHOLE,
            max(stage.peak for stage in stages),
            sum(seconds) if len(seconds) == len(stages) else None,
            max(it.predicted or 0 for it in told),
        )
    return told


def instead(config: MemoryOptimizationConfig, why: Unpredicted) -> str:
    """A sentence about how it was settled without a prediction."""
    if config.budget_bytes is not None:
        return f"the budget of {format_bytes(config.budget_bytes)} is kept by estimate: {why}"
    return f"chosen by the device's memory, not by prediction: {why}"


def _fits(way: Foreseen, limit: int, history: Learned | None) -> bool:
    return fastest_that_fits([way.prediction], limit, history).fits


def _only_decoding(way: Foreseen, limit: int, history: Learned | None) -> bool:
    """Whether all stages but the decode fit."""
    others = tuple(stage for stage in way.prediction.stages if stage.stage != DECODING)
    if not others or len(others) == len(way.prediction.stages):
        return False
    return fastest_that_fits([Prediction(way.prediction.level, others)], limit, history).fits


def _too_small(budget: int, choice: Choice, size: tuple[int, int]) -> BudgetError:
    height, width = size
    return BudgetError(
        f"a budget of {format_bytes(budget)} does not hold this run: "
        f"{choice.prediction.level} is predicted to need {format_bytes(choice.needed)}, its margin "
        f"included, at {width} x {height} pixels; give {format_bytes(givable(choice.needed))} or "
        f"more, or leave the budget out"
    )

"""Predicts runs of a diffusers pipeline that is loaded, within the time a run has for that.

Recording a trace takes seconds of a large model. Those that are known already, here or on disk,
cost milliseconds; others are recorded before the run only where that is quick, else after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .. import stores
from ..device import snapshot
from ..errors import LowtideError
from ..fitting import MARGIN, Prediction, Stage
from ..foresight import Foreseen, TooSlow, Unpredicted
from ..history_rows import Key
from ..levels import MemoryOptimizationConfig
from ..planner import planner, recent
from ..planner.cache import shared
from ..planner.predict import Prediction as Predicted
from ..planner.predict import predict
from ..planner.trace import key_of
from ..planner.work import Work
from ..profiles import known
from ..run_key import pipeline_key, plan_name
from ..stage_names import DECODING, OF_PLANNER
from ..stages import stage_of
from ..strategies.attention import has_fused_kernel
from .diffusers import modules_of
from .diffusers_traces import PipelineTraces

PATIENCE = 0.5
"""Seconds that traces may take before a run which nobody asked to be predicted."""

A_MODULE, A_TILED_MODULE = 3e-3, 12e-3
"""Seconds that tracing takes for each module of a component, about; of a VAE in tiles, more."""


def key_of_run(pipe: Any, config: MemoryOptimizationConfig, work: Work, device: Any) -> Key:
    """What the history keeps a run of ``pipe`` under."""
    return pipeline_key(
        snapshot(device),
        type(pipe).__name__,
        modules_of(pipe).values(),
        config,
        (work.batch, work.height, work.width),
        str(torch.__version__),
    )


def foreseen(config: MemoryOptimizationConfig, found: Predicted, key: Key) -> Foreseen:
    """A prediction of the planner's, by the history's names of stages."""
    margin = MARGIN if config.budget_bytes is None else planner.MARGIN
    stages = tuple(
        Stage(key, OF_PLANNER[name], stage.peak_allocated_bytes, stage.seconds, margin)
        for name, stage in found.stages.items()
    )
    return Foreseen(config, Prediction(config.level.value, stages))


class PipelineForesight:
    """Predictions of one run of a pipeline under several configurations.

    Args:
        patience: seconds that recording may take in all; 0 = only what is recorded already,
            ``None`` = ``PATIENCE``.

    Raises:
        Unpredicted: a pipeline that cannot be planned, or nowhere to keep its traces.
    """

    def __init__(
        self, pipe: Any, work: Work, device: torch.device, *, patience: float | None = None
    ) -> None:
        try:
            self.store = shared(stores.folder() / "traces")
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise Unpredicted(f"there is no folder to keep traces in ({error})") from error
        try:
            kernel = "fused" if has_fused_kernel(device) else "math"
            self.traces = PipelineTraces(pipe, work, attention=kernel, store=self.store)
        except Exception as error:  # a pipeline may lack whatever is asked of it
            raise Unpredicted(_cannot(error)) from error
        self.work = work
        self.patience = PATIENCE if patience is None else patience
        found = snapshot(device)
        version = str(torch.__version__)
        self.profile = known(found.name, version)
        self._key = lambda config: key_of_run(pipe, config, work, device)

    def __call__(self, config: MemoryOptimizationConfig) -> Foreseen:
        """What the run needs under ``config``, whose budget changes nothing of it.

        Raises:
            Unpredicted: a trace is missing and would take too long, or cannot be recorded.
        """
        found = self._predicted(config.replace(budget_bytes=None))
        return foreseen(config, found, self._key(config))

    def prepare(self, configs: Iterable[MemoryOptimizationConfig]) -> None:
        """Record what is missing for ``configs``, however long it takes."""
        for config in configs:
            self.traces.turns(config.replace(budget_bytes=None))

    def _predicted(self, config: MemoryOptimizationConfig) -> Predicted:
        try:
            keys = self.traces.keys(config)
            question = key_of(
                {
                    "traces": sorted(keys.items()),
                    "plan": plan_name(config),
                    "work": self.work.to_dict(),
                    "profile": self.profile.to_dict(),
                }
            )
            found = recent.predictions.get(question)
            if found is None:
                missing = [name for name, key in keys.items() if not self.store.has(key)]
                self._wait_for(missing, config.enable_vae_tiling)
                found = predict(
                    self.traces.turns(config),
                    rates=self.profile,
                    workspace_factor=self.profile.workspace_factor,
                    context_bytes=self.profile.context_bytes,
                )
                recent.predictions.put(question, found)
        except Unpredicted:
            raise
        except Exception as error:  # a model nobody has met may break anything here
            raise Unpredicted(_cannot(error)) from error
        return found

    def _wait_for(self, missing: list[str], tiled: bool) -> None:
        """Spend patience on traces that have to be recorded.

        Raises:
            Unpredicted: not enough of it is left.
        """
        if not missing:
            return
        seconds = 0.0
        for name in missing:
            each = A_TILED_MODULE if tiled and stage_of(name) == DECODING else A_MODULE
            seconds += each * sum(1 for _ in self.traces.parts[name].modules())
        if seconds > self.patience:
            raise TooSlow(
                f"tracing {', '.join(missing)} would take about {seconds:.1f} s; it is done after "
                f"the run, for the next one"
            )
        self.patience -= seconds


def _cannot(error: Exception) -> str:
    said = str(error) if isinstance(error, LowtideError) else f"{type(error).__name__}: {error}"
    return f"this pipeline cannot be predicted ({said[:200]})"

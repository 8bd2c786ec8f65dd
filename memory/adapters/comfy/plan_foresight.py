"""Predicts what a graph's loaded models need in a run, by traces that are recorded already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ... import stores
from ...device import snapshot
from ...errors import BudgetError, LowtideError
from ...fitting import MARGIN, Prediction, Stage
from ...foresight import Foreseen, TooSlow, Unpredicted
from ...history_rows import Key
from ...levels import MemoryOptimizationConfig
from ...planner import planner
from ...planner.cache import TraceCache, shared
from ...planner.predict import predict
from ...planner.trace import Trace, key_of
from ...profiles import known
from ...run_key import plan_name, positions, shape_name
from ...stage_names import DECODING, DENOISING, OF_PLANNER, TEXT_ENCODING
from ...strategies.attention import has_fused_kernel
from .learned import gpu, name_of
from .plan_loaded import loaded_subject
from .plan_subject import ComfySubject
from .runs import Run


class LoadedForesight:
    """Predictions of one run of loaded models; a part that is ``None`` is left out.

    Raises:
        Unpredicted: nowhere to keep traces, or nothing to predict.
    """

    def __init__(
        self,
        run: Run,
        device: torch.device,
        *,
        model: Any = None,
        clip: Any = None,
        vae: Any = None,
    ) -> None:
        if model is None and clip is None and vae is None:
            raise Unpredicted("no model is plugged in")
        try:
            self.store = _Known(shared(stores.folder() / "traces"))
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise Unpredicted(f"there is no folder to keep traces in ({error})") from error
        self.run = run
        self.device = device
        self.parts = {"model": model, "clip": clip, "vae": vae}
        self.profile = known(snapshot(device).name, str(torch.__version__))
        self.size = (run.work.height, run.work.width)
        self._subject = self._loaded()

    def what(self) -> str:
        """The run, for people."""
        work = self.run.work
        size = f"{work.width} x {work.height} pixels"
        return size if work.batch == 1 else f"{size}, {work.batch} images at once"

    def __call__(self, config: MemoryOptimizationConfig) -> Foreseen:
        """What the run needs under ``config``, its budget included.

        Raises:
            Unpredicted: a trace is not recorded, or cannot be. BudgetError: of the budget.
        """
        margin = MARGIN if config.budget_bytes is None else planner.MARGIN
        try:
            found = predict(
                self._subject.turns(config),
                rates=self.profile,
                workspace_factor=self.profile.workspace_factor,
                context_bytes=self.profile.context_bytes,
            )
        except (Unpredicted, BudgetError):
            raise
        except Exception as error:  # a foreign model may lack whatever is asked of it
            raise Unpredicted(_cannot(error)) from error
        keys = self._keys(config)
        stages = tuple(
            Stage(keys[name], name, stage.peak_allocated_bytes, stage.seconds, margin)
            for name, stage in ((OF_PLANNER[it], found.stages[it]) for it in found.stages)
        )
        return Foreseen(config, Prediction(config.level.value, stages))

    def prepare(self, configs: Iterable[MemoryOptimizationConfig]) -> None:
        """Record what is missing for ``configs``, however long it takes."""
        self.store.may_record = True
        try:
            for config in configs:
                self._subject.turns(config)
        finally:
            self.store.may_record = False

    def _loaded(self) -> ComfySubject:
        kernel = "fused" if has_fused_kernel(self.device) else "math"
        factor = self.profile.workspace_factor
        more: dict[str, Any] = {"attention": kernel, "workspace_factor": factor}
        return loaded_subject(self.run.work, store=self.store, **self.parts, **more)

    def _keys(self, config: MemoryOptimizationConfig) -> dict[str, Key]:
        """The names the history will have for the stages; see ``learned``."""
        name, plan = gpu(self.device), plan_name(config)
        model, clip, vae = (self.parts[part] for part in ("model", "clip", "vae"))
        found: dict[str, Key] = {}
        if clip is not None:
            kind = name_of(clip.patcher, clip.cond_stage_model)
            found[TEXT_ENCODING] = Key(name, kind, "", plan, 0)
        shape = self._latents()
        for stage, patcher, module in (
            (DENOISING, model, getattr(model, "model", None)),
            (DECODING, getattr(vae, "patcher", None), getattr(vae, "first_stage_model", None)),
        ):
            if patcher is not None:
                kind = name_of(patcher, module)
                found[stage] = Key(name, kind, shape_name(shape), plan, positions(shape))
        return found

    def _latents(self) -> tuple[int, ...]:
        """The shape of the latents that the graph makes."""
        model, vae, work = self.parts["model"], self.parts["vae"], self.run.work
        channels, factor = self.run.channels or 4, 8
        form = getattr(getattr(model, "model", None), "latent_format", None)
        if self.run.channels is None and form is not None:
            channels = int(form.latent_channels)
            factor = int(getattr(form, "spacial_downscale_ratio", None) or 8)
        elif self.run.channels is None and vae is not None:
            channels, factor = int(vae.latent_channels), int(vae.spacial_compression_decode())
        return (work.batch, channels, work.height // factor, work.width // factor)


class _Known(TraceCache):
    """Traces that are there already; others are recorded only where somebody has the time."""

    def __init__(self, store: TraceCache) -> None:
        super().__init__(store.folder, store.most_bytes)
        self._store = store
        self.may_record = False

    def recorded(self, question: Mapping[str, Any], record: Callable[[], Trace]) -> Trace:
        """As ``TraceCache.recorded``.

        Raises:
            TooSlow: it would have to be recorded now.
        """
        if not self.may_record and not self._store.has(key_of(question)):
            raise TooSlow("it has not been traced yet; that is done after this prompt")
        return self._store.recorded(question, record)


def _cannot(error: Exception) -> str:
    said = str(error) if isinstance(error, LowtideError) else f"{type(error).__name__}: {error}"
    return f"these models cannot be predicted ({said[:200]})"

"""``lowtide.plan``: what a run would take, before it runs and without a GPU.

The model's own code is traced on fake tensors: no weight is read. All figures are predictions.
No torch here until a plan is asked for.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import ConfigError
from .kept_free import KeptFree, kept_free
from .levels import MemoryOptimizationConfig, OptimizationLevel
from .planner.batches import said
from .planner.cache import TraceCache
from .planner.planner import Limits
from .planner.predict import Prediction, StagePrediction, predict
from .planner.work import Work
from .profile import DeviceProfile
from .units import format_bytes, gb_to_bytes

if TYPE_CHECKING:
    from .adapters.plan_subject import PipelineSubject

DEFAULT_CARD = "RTX 3060"
DEFAULT_SIZE = 1024
SIZES = {"sd15": 512, "tiny-sd15": 128, "tiny-sdxl": 128, "tiny-flux": 128, "sdxl-small": 512}
"""Edges in pixels of the models that are not made for ``DEFAULT_SIZE``."""


@dataclass(frozen=True)
class RunPlan:
    """One run as it is predicted. Bytes and seconds.

    Attributes:
        model: what was planned.
        work: the run: pixels, images at once, steps.
        level: the level predicted; ``budget`` for the fastest way within one.
        fits: whether the budget holds it; ``True`` without one.
        stages: ``encode``, ``denoise`` and ``decode``, each with its peaks, seconds, bytes moved,
            and the operation that causes the peak; empty where nothing fits.
        peak_allocated_bytes, peak_reserved_bytes: the most of any stage.
        device_peak_bytes: the same as the device's driver counts it, its context included.
        moved_bytes: copied to the device.
        host_bytes: weights that wait in host memory.
        seconds: by the profile's rates; never measured on a GPU.
        smallest_budget_bytes: the least budget with which there is a plan; ``None`` without one.
        largest_batch: the most images at once that fit the budget, where several are asked for.
        margin: part of the prediction that is kept free under the budget. margin_source: why that.
        how: what each component does under the budget, by name, as plain values.
        advice: what to change where nothing fits.
        profile: the device's rates, measured or published, as its ``source`` says.
        notes: what was assumed.
    """

    model: str
    work: Work
    level: str
    fits: bool
    stages: dict[str, StagePrediction]
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    device_peak_bytes: int
    moved_bytes: int
    host_bytes: int
    seconds: float | None
    profile: DeviceProfile
    budget_bytes: int | None = None
    smallest_budget_bytes: int | None = None
    largest_batch: int | None = None
    margin: float | None = None
    margin_source: str | None = None
    how: dict[str, Any] = field(default_factory=dict)
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"predicted": True, **asdict(self)}

    def text(self) -> str:
        """A few lines for a person."""
        work = self.work
        many = f", {work.batch} images at once" if work.batch > 1 else ""
        lines = [
            f"{self.model}, {work.width} x {work.height} pixels{many}, {work.steps} steps, level "
            f"{self.level}, predicted"
        ]
        for name, stage in self.stages.items():
            took = "" if stage.seconds is None else f", {stage.seconds:.1f} s"
            lines.append(
                f"  {name}: {format_bytes(stage.peak_allocated_bytes)} allocated, "
                f"{format_bytes(stage.peak_reserved_bytes)} reserved, "
                f"{format_bytes(stage.moved_bytes)} moved{took}"
            )
        if self.margin is not None and self.margin_source is not None:
            lines.append(f"  {KeptFree(self.margin, self.margin_source).text()}")
        if self.largest_batch is not None:
            lines.append(f"  largest batch that fits: {said(self.largest_batch)}")
        return "\n".join((*lines, *self.advice))


def plan(
    model: Any,
    *,
    size: int | None = None,
    width: int | None = None,
    height: int | None = None,
    batch: int = 1,
    steps: int = 30,
    level: str | OptimizationLevel | None = None,
    budget_gb: float | None = None,
    card: str | None = None,
    dtype: str | None = None,
) -> RunPlan:
    """Predict a run of ``model``.

    Args:
        model: a diffusers pipeline, loaded or with weights on ``meta``; ``sd15``, ``sdxl``,
            ``flux``; the path of a pipeline's folder, or of a safetensors checkpoint.
        size: edge of the image in pixels, or ``width`` and ``height``; ``None`` = 1024 (sd15:
            512).
        batch: images made at once.
        steps: of denoising.
        level: the level to predict; ``auto`` goes by this machine's device. With a budget, leave it
            out: the plan is the fastest way within it.
        budget_gb: the most to be allocated on the device, in GB of 1024**3 bytes.
        card: whose rates to count with, such as ``RTX 4090``; ``None`` = this machine's device,
            measured once (10 seconds at most), or an RTX 3060 where there is none.
        dtype: of the weights where no file says so: ``float16``, ``bfloat16``, ``float32``.

    Raises:
        ConfigError: an unknown model, level or card, a size or budget that is none, or both a level
            and a budget.
        PipelineLoadError: a file or folder that cannot be read.
        TargetError: a pipeline whose calls are not known.
    """
    if level is not None and budget_gb is not None:
        raise ConfigError("give a level or a budget_gb: a budget chooses the fastest way itself")
    usual = SIZES.get(model if isinstance(model, str) else "", DEFAULT_SIZE)
    edge = usual if size is None else size
    wide, high = (edge if given is None else given for given in (width, height))
    work = Work(wide, high, batch=batch, steps=steps)
    subject = _subject(model, work, dtype)
    profile = profile_of(card)
    costs: dict[str, Any] = {
        "rates": profile,
        "workspace_factor": profile.workspace_factor,
        "context_bytes": profile.context_bytes,
    }
    if budget_gb is None:
        asked = _level(level)
        found = predict(subject.turns(MemoryOptimizationConfig.from_level(asked)), **costs)
        return _made(subject, work, asked, profile, found)
    kept = kept_free(subject.models(), card)
    limits = Limits(gb_to_bytes(budget_gb), margin=kept.margin)
    chosen = subject.within(limits, work, costs)
    told = chosen.to_dict()
    return _made(
        subject,
        work,
        "budget",
        profile,
        chosen.prediction,
        budget_bytes=limits.budget,
        smallest_budget_bytes=chosen.smallest_budget,
        largest_batch=subject.images_at_once(limits, costs) if batch > 1 else None,
        how=told.get("choices") or {"level": told.get("level")},
        advice=tuple(told["advice"]),
        margin=kept.margin,
        margin_source=kept.why,
    )


def profile_of(card: str | None) -> DeviceProfile:
    """The card asked for; this machine's device, measured at its first use; else a common card.

    Raises:
        ConfigError: a card that is not listed.
    """
    from .profile_published import CARDS, published

    if card is None:
        from . import backend

        if backend.available_types():
            from . import profiles

            return profiles.measured()
    found = published(card or DEFAULT_CARD)
    if found is None:
        raise ConfigError(
            f"--card {card} is not listed; leave it out for this machine's, or give one of "
            f"{', '.join(CARDS)}"
        )
    return found


def _subject(model: Any, work: Work, dtype: str | None) -> PipelineSubject:
    from . import stores
    from .adapters.plan_subject import PipelineSubject, pipeline_subject

    store = TraceCache(stores.folder() / "traces")
    if isinstance(model, str) or hasattr(model, "__fspath__"):
        return pipeline_subject(str(model), work, store, dtype)
    from .adapters.diffusers import require_pipeline
    from .adapters.diffusers_traces import PipelineTraces

    traces = PipelineTraces(require_pipeline(model), work, store=store)
    return PipelineSubject(type(model).__name__, traces)


def _level(asked: str | OptimizationLevel | None) -> str:
    level = OptimizationLevel.parse(asked or "none")
    if level is OptimizationLevel.AUTO:
        level = MemoryOptimizationConfig.auto().level
    return level.value


def _made(
    subject: PipelineSubject,
    work: Work,
    level: str,
    profile: DeviceProfile,
    found: Prediction | None,
    **more: Any,
) -> RunPlan:
    return RunPlan(
        subject.name,
        work,
        level,
        found is not None,
        {} if found is None else found.stages,
        0 if found is None else found.peak_allocated,
        0 if found is None else found.peak_reserved,
        0 if found is None else found.device_peak,
        0 if found is None else found.moved_bytes,
        0 if found is None else found.host_bytes,
        None if found is None else found.seconds,
        profile,
        notes=subject.notes,
        **more,
    )

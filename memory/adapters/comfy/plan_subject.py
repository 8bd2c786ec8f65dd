"""A checkpoint's file or a graph, planned with ComfyUI's own classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import ConfigError, PipelineLoadError
from ...levels import MemoryOptimizationConfig
from ...planner.api_graph import read_graph
from ...planner.cache import TraceCache
from ...planner.header import read_header
from ...planner.orders import LARGEST
from ...planner.planner import Limits, Plan, choose
from ...planner.policy import COMFYUI
from ...planner.predict import Turn
from ...planner.wired import Wired, wired
from ...planner.work import Work
from ...stage_names import DECODING, DENOISING, TEXT_ENCODING
from ..plan_options import options_of
from . import plan_models as models
from . import plan_parts
from .plan_traces import ComfyTraces
from .plan_uncounted import uncounted

_STATIC = (
    "As ComfyUI's loader places weights without DynamicVRAM, which pages them by itself where it "
    "is on."
)


@dataclass
class ComfySubject:
    """Models of a file or a graph; as ``PipelineSubject``. ``level`` and ``budget_gb`` are those of
    the graph's Level Selector."""

    name: str
    traces: ComfyTraces
    split: ComfyTraces | None
    notes: tuple[str, ...] = (_STATIC,)
    engine: str = COMFYUI
    level: str | None = None
    budget_gb: float | None = None

    def turns(self, config: MemoryOptimizationConfig) -> list[Turn]:
        """What its models do under ``config``."""
        return self.traces.turns(config)

    def within(self, limits: Limits, _work: Work, costs: dict[str, Any]) -> Plan:
        """The fastest way within ``limits``: what is resident, tiles, FP8, one cond at a time."""
        options = options_of(
            self.traces, MemoryOptimizationConfig(), split=self.split, orders=(LARGEST,)
        )
        rates = costs["rates"]
        return choose(
            options,
            limits,
            rates,
            workspace_factor=costs["workspace_factor"],
            context_bytes=costs["context_bytes"],
        )

    def images_at_once(self, limits: Limits, _costs: dict[str, Any]) -> int | None:
        """The largest batch that a budget in the Memory Level Selector holds; ``None`` without one,
        or without a diffusion model."""
        if limits.budget is None or self.traces.models.model is None:
            return None
        from .plan_batches import within_budget

        return within_budget(self.traces, MemoryOptimizationConfig(), limits)

    def models(self) -> dict[str, str]:
        """The history's name of the model of each stage."""
        from .learned import name_of

        found, held = {}, self.traces.models
        if held.clip is not None:
            found[TEXT_ENCODING] = name_of(held.clip.patcher, held.clip.cond_stage_model)
        if held.model is not None:
            found[DENOISING] = name_of(held.model, held.model.model)
        if held.vae is not None:
            found[DECODING] = name_of(held.vae.patcher, held.vae.first_stage_model)
        return found


def comfy_subject(path: Path, changes: Mapping[str, Any], store: TraceCache | None) -> ComfySubject:
    """The models of a safetensors file, or of a graph's loaders.

    Args:
        changes: of a run's values, by their names in ``Work``: a graph's own, or the usual ones.

    Raises:
        ConfigError, PipelineLoadError: a file that is missing or nothing ComfyUI knows; a graph
            that is not understood.
    """
    import folder_paths  # noqa: F401  from then on history and profile are ComfyUI's

    if path.suffix.lower() == ".json":
        return _graph_subject(path, changes, store)
    loaded = _of_file(path)
    found = subject_of(path.name, loaded, replace(Work(), **changes), store)
    short = read_header(path).cut_short(path.name)
    return found if short is None else replace(found, notes=(*found.notes, short))


def _graph_subject(
    path: Path, changes: Mapping[str, Any], store: TraceCache | None
) -> ComfySubject:
    graph = read_graph(path)
    try:
        run = wired(graph)
        loaded = _of_graph(run)
    except ConfigError as error:
        raise ConfigError(f"{path.name} cannot be planned: {error}") from None
    found = subject_of(path.name, loaded, replace(run.work, **changes), store)
    selector = run.selector or {}
    level, budget = selector.get("level"), selector.get("budget_gb")
    return replace(
        found,
        notes=(*found.notes, *uncounted(graph, run, loaded)),
        level=level if isinstance(level, str) else None,
        budget_gb=float(budget) if isinstance(budget, int | float) and budget else None,
    )


def subject_of(
    name: str,
    loaded: models.Models,
    work: Work,
    store: TraceCache | None,
    attention: str = "fused",
    factor: float = 1.0,
) -> ComfySubject:
    """What is to be predicted of models, loaded ones or those of headers."""
    traces = ComfyTraces(loaded, work, store, attention, factor)
    split = None
    if loaded.model is not None and traces.guided:
        split = replace(traces, work=replace(work, guided=False))
    missing = [part for part in ("model", "clip", "vae") if getattr(loaded, part) is None]
    notes = [_STATIC]
    if missing:
        notes.append(f"No {' and no '.join(missing)} in {name}: those stages are left out.")
    return ComfySubject(name, traces, split, tuple(notes))


def _of_file(path: Path) -> models.Models:
    names = read_header(path).tensors
    if any(name.startswith(("first_stage_model.", "cond_stage_model.", "conditioner.",
                            "text_encoders.", "vae.")) for name in names):  # fmt: skip
        return models.from_checkpoint(path)
    return models.Models(models.diffusion_model(path))


def _of_graph(run: Wired) -> models.Models:
    """The models of a graph.

    Raises:
        ConfigError, PipelineLoadError: a file is missing, or it is none that ComfyUI knows.
    """
    parts = {}
    for part, loaded in run.parts.items():
        files = [_full(loaded.folder, name) for name in loaded.names]
        parts[part] = plan_parts.asked_for(part, loaded, files)
    left_out: dict[str, str] = {}
    found = plan_parts.load(parts, left_out)
    if left_out:
        raise PipelineLoadError("; ".join(f"{part}: {why}" for part, why in left_out.items()))
    return found


def _full(kind: str, name: str) -> Path:
    """The file of that name in ComfyUI's folders of that kind, or by its own path.

    Raises:
        ConfigError: there is none.
    """
    return Path(name) if Path(name).is_file() else plan_parts.file_of(kind, name)

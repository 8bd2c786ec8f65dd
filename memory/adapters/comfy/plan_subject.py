"""A checkpoint's file or a graph, planned with ComfyUI's own classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...levels import MemoryOptimizationConfig
from ...planner.cache import TraceCache
from ...planner.header import read_header
from ...planner.orders import LARGEST
from ...planner.planner import Limits, Plan, choose
from ...planner.policy import COMFYUI
from ...planner.predict import Turn
from ...planner.work import Work
from ...planner.workflow import Graph, read_graph
from ...stage_names import DECODING, DENOISING, TEXT_ENCODING
from ..plan_options import options_of
from . import plan_models as models
from .plan_traces import ComfyTraces

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


def comfy_subject(path: Path, work: Work | None, store: TraceCache | None) -> ComfySubject:
    """The models of a safetensors file, or of a graph's loaders.

    Args:
        work: of a file; ``None`` = what the graph asks for.

    Raises:
        ConfigError, PipelineLoadError: a file that is missing or nothing ComfyUI knows.
    """
    import folder_paths  # noqa: F401  from then on history and profile are ComfyUI's

    if path.suffix == ".json":
        graph = read_graph(path)
        found = subject_of(path.name, _of_graph(graph), work or graph.work, store)
        return replace(found, level=graph.level, budget_gb=graph.budget_gb)
    loaded = _of_file(path)
    return subject_of(path.name, loaded, work or Work(), store)


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


def _of_graph(graph: Graph) -> models.Models:
    found = models.Models()
    if graph.checkpoint is not None:
        found = models.from_checkpoint(_full("checkpoints", graph.checkpoint))
    if graph.unet is not None:
        found.model = models.diffusion_model(_full("diffusion_models", graph.unet))
    if graph.clips:
        files = [_full("text_encoders", name) for name in graph.clips]
        found.clip = models.text_encoders(files, graph.clip_type)
    if graph.vae is not None:
        found.vae = models.autoencoder(_full("vae", graph.vae))
    return found


def _full(kind: str, name: str) -> Path:
    """The file of that name in ComfyUI's folders of that kind, or by its own path.

    Raises:
        ConfigError: there is none.
    """
    import folder_paths

    if Path(name).is_file():
        return Path(name)
    found = folder_paths.get_full_path(kind, name)
    if found is None:
        raise ConfigError(
            f"the graph loads {name}, and there is no such file in ComfyUI's {kind} folders"
        )
    return Path(found)

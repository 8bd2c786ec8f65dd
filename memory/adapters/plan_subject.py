"""What can be planned by name or path: a family's pipeline, a folder, a checkpoint's header."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, PipelineLoadError
from ..levels import MemoryOptimizationConfig
from ..planner.cache import TraceCache
from ..planner.header import Header, read_header
from ..planner.ladder import Climb, Rung, climb
from ..planner.planner import Limits
from ..planner.predict import Turn
from ..planner.turns import TurnsPlan
from ..planner.work import Work
from ..run_key import pipeline_name
from ..stage_names import OF_PLANNER
from ..units import format_bytes
from .diffusers import modules_of
from .diffusers_traces import PipelineTraces
from .pipeline_batches import images_at_once
from .synthetic import NAMES, SDXL_SMALL, build
from .turn_options import TurnOptions

_FAMILIES = {"v1": "sd15", "xl_base": "sdxl", "flux-dev": "flux", "flux-schnell": "flux"}
"""diffusers' names of checkpoints whose pipelines are known here."""
_FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


@dataclass
class PipelineSubject:
    """A diffusers pipeline that is planned and need not be loaded.

    Attributes:
        notes: what a reader has to know of what was assumed.
    """

    name: str
    traces: PipelineTraces
    notes: tuple[str, ...] = ()
    engine: str = "diffusers"
    level: str | None = None
    budget_gb: float | None = None

    def turns(self, config: MemoryOptimizationConfig) -> list[Turn]:
        """What its components do under ``config``."""
        return self.traces.turns(config)

    def within(self, limits: Limits, _work: Work, costs: dict[str, Any]) -> Climb | TurnsPlan:
        """What ``MemoryOptimizer`` would do within ``limits``; ``costs`` as ``predict`` takes them.

        Level none where that fits, else a share of the device for each component in its turn.
        """
        plain = MemoryOptimizationConfig()
        whole = climb([[Rung(plain, self.turns(plain), {})]], limits, **costs)
        if whole.rung is not None:
            return whole
        options = TurnOptions(self.traces, plain)
        return options.best(replace(limits, faithful=True, by_moved=True), **costs)

    def images_at_once(self, limits: Limits, costs: dict[str, Any]) -> int | None:
        """The largest batch that fits the budget; ``None`` without one."""
        if limits.budget is None:
            return None
        return images_at_once(
            self.traces.pipe,
            MemoryOptimizationConfig(),
            self.traces.work,
            limits.budget,
            costs["rates"],
            workspace_factor=costs["workspace_factor"],
            store=self.traces.store,
            margin=limits.margin,
        )

    def models(self) -> dict[str, str]:
        """The history's name of the model of each stage."""
        pipe = self.traces.pipe
        kind = getattr(pipe, "kind", None) or type(pipe).__name__
        parts = modules_of(pipe).values()
        name = pipeline_name(kind, sum(it.numel() for part in parts for it in part.parameters()))
        return dict.fromkeys(OF_PLANNER.values(), name)


def pipeline_subject(
    model: str, work: Work, store: TraceCache | None, dtype: str | None = None
) -> PipelineSubject:
    """The pipeline called ``model``, in a folder of that path, or of that checkpoint's family.

    Raises:
        ConfigError: neither a known name nor a file or folder; a family that is not known.
        PipelineLoadError: a file that is no safetensors, or a folder that is no pipeline.
    """
    path = Path(model).expanduser()
    if model in NAMES:
        kind = dtype or ("bfloat16" if model.endswith("flux") else "float16")
        pipe = build(model, kind, on_meta=model != SDXL_SMALL)
        return PipelineSubject(f"{model}, {kind}", PipelineTraces(pipe, work, store=store))
    if path.is_dir():
        pipe, uncounted = _from_folder(path, dtype)
        notes = tuple(f"{name} is not counted: its class is not known here" for name in uncounted)
        return PipelineSubject(path.name, PipelineTraces(pipe, work, store=store), notes)
    if path.is_file():
        header = read_header(path)
        family, kind = family_of(header), dtype or _FLOATS.get(header.common_dtype, "float16")
        pipe = build(family, kind, on_meta=True)
        note = (
            f"{path.name} has the keys of {family}: planned as that family in {kind}, with its "
            f"text encoders and VAE; the file's own {len(header.tensors)} weights take "
            f"{format_bytes(header.nbytes)}"
        )
        notes = tuple(it for it in (note, header.cut_short(path.name)) if it is not None)
        return PipelineSubject(path.name, PipelineTraces(pipe, work, store=store), notes)
    raise ConfigError(
        f"--model {model} is neither a model known here ({', '.join(NAMES)}) nor a file or folder"
    )


def family_of(header: Header) -> str:
    """The family of a checkpoint by its keys, as diffusers tells them apart.

    Raises:
        ConfigError: another family.
    """
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    state = {
        name.removeprefix("model.diffusion_model.") if "double_blocks" in name else name: (
            torch.empty(entry.shape, device="meta")
        )
        for name, entry in header.tensors.items()
    }
    kind: Any = infer_diffusers_model_type(state)
    if kind == "v1" and not any("input_blocks" in name for name in state):
        kind = None  # diffusers' answer to keys it knows nothing of
    if kind not in _FAMILIES:
        raise ConfigError(
            f"a checkpoint of this family ({kind or 'unknown'}) is planned in ComfyUI only; known "
            f"here are {', '.join(sorted(set(_FAMILIES.values())))}. Give --comfyui FOLDER"
        )
    return _FAMILIES[kind]


def _from_folder(folder: Path, dtype: str | None) -> tuple[Any, list[str]]:
    """A pipeline with weights on ``meta``, from the configurations in a folder of diffusers; and
    the components whose classes are not known.

    Raises:
        PipelineLoadError: it is none, or a component's configuration is missing or makes nothing.
    """
    import json

    import diffusers
    import transformers

    index = folder / "model_index.json"
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
        if not isinstance(entries, dict):
            raise ValueError("its model_index.json holds no object")
    except (OSError, ValueError) as error:
        raise PipelineLoadError(f"{folder} is no folder of a diffusers pipeline: {error}") from None
    kind = getattr(torch, dtype or "float16")
    parts: dict[str, Any] = {}
    unknown: list[str] = []
    from ..tracing import on_meta

    for name, entry in entries.items():
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] is None:
            continue
        library = {"diffusers": diffusers, "transformers": transformers}.get(entry[0])
        cls: Any = getattr(library, str(entry[1]), None)
        if cls is None:
            unknown.append(f"{name} ({entry[1]})")
        if not isinstance(cls, type) or not issubclass(cls, torch.nn.Module):
            continue
        made: Any = cls
        if not (folder / name / "config.json").is_file():  # else its path is taken for a model's id
            raise PipelineLoadError(f"{folder} has no {name}/config.json; download it again")
        try:
            with on_meta():
                if entry[0] == "diffusers":
                    part = made.from_config(made.load_config(str(folder / name)))
                else:
                    part = made(made.config_class.from_pretrained(str(folder / name)))
        except Exception as error:  # a class raises what it likes of a configuration
            raise PipelineLoadError(
                f"the {name} of {folder} cannot be made from its config.json: "
                f"{type(error).__name__}: {str(error)[:200]}"
            ) from error
        parts[name] = part.to(kind).eval().requires_grad_(False)
    if not parts:
        raise PipelineLoadError(
            f"{folder} has no component that could be planned"
            + (f": {', '.join(unknown)} are not known here" if unknown else "")
        )
    name = str(entries.get("_class_name"))
    if hasattr(getattr(diffusers, name, None), "upcast_vae"):
        return _UpcastingParts(parts, name), unknown
    return _Parts(parts, name), unknown


class _Parts:
    """Components by name, as much of a pipeline as its traces need."""

    def __init__(self, components: dict[str, Any], kind: str) -> None:
        self.components = components
        self.kind = kind
        vae = components.get("vae")
        self.transformer = components.get("transformer")
        blocks = getattr(getattr(vae, "config", None), "block_out_channels", None)
        self.vae_scale_factor = 2 ** (len(blocks) - 1) if blocks else 8


class _UpcastingParts(_Parts):
    """Of a pipeline that decodes in float32 where its VAE asks for that."""

    upcast_vae = None

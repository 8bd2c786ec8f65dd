"""What is to be predicted of a graph before its models are loaded: files, device, configurations.

The answer is ``plan_files``': another process, which knows nothing of this one's folders and device
but what the question says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .... import backend, candidates, profiles, selection
from ....adjust import adjust
from ....device import snapshot
from ....errors import ConfigError
from ....levels import MemoryOptimizationConfig, OptimizationLevel
from ....override import Override
from ....planner.api_graph import Graph
from ....planner.predict import DECODE, DENOISE, ENCODE
from ....planner.wired import Loaded, Wired, wired
from ....strategies.attention import has_fused_kernel
from ... import comfy
from ..plan_parts import asked_for, file_of

STAGE = {"clip": ENCODE, "model": DENOISE, "vae": DECODE}
_kernels: dict[torch.device, str] = {}


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        wired: the graph's run.
        config: of Optimize Pipeline; ``None`` where nothing goes through one.
        configs: what it may come to: one, but where the level follows what fits.
        asked: for ``plan_files``, plain JSON values.
        key: a name for all that the answer depends on, the files' sizes and times of change too.
        left_out: stage -> why it is not predicted.
    """

    wired: Wired
    config: MemoryOptimizationConfig | None
    configs: tuple[MemoryOptimizationConfig, ...]
    asked: dict[str, Any]
    key: str
    left_out: dict[str, str]


def question_of(graph: Graph, forced: Override) -> Question:
    """What to ask of a graph's next run.

    Args:
        forced: what goes before the level and the budget of its selector.

    Raises:
        ConfigError: it can't be predicted; a sentence for people. BudgetError: of its budget.
    """
    run = wired(graph)
    device = backend.device_of(comfy.device())
    if device.type not in backend.ACCELERATORS:
        raise ConfigError("ComfyUI computes on the CPU, whose memory is not predicted")
    parts: dict[str, Any] = {}
    state: list[tuple[int, int]] = []
    left_out: dict[str, str] = {}
    for part, loaded in run.parts.items():
        try:
            files = [file_of(loaded.folder, name) for name in loaded.names]
            state += [_state(file) for file in files]
        except ConfigError as error:
            left_out[STAGE[part]] = str(error)
            continue
        parts[part] = asked_for(part, loaded, files)
    if not parts:
        raise ConfigError("; ".join(left_out.values()))
    on_host = _on_host(run.parts)
    for part in on_host:
        left_out[STAGE[part]] = "it computes on the CPU, and takes nothing of the device"
    config = None if run.selector is None else _config(run.selector, run.settings, forced, device)
    configs = (MemoryOptimizationConfig(),) if config is None else tuple(_ways(config))
    asked = {
        "parts": parts,
        "on_host": on_host,
        "optimized": sorted(run.optimized),
        "work": run.work.to_dict(),
        "configs": [way.to_dict() for way in configs],
        **_here(device),
    }
    text = json.dumps([asked, state], sort_keys=True)
    key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return Question(run, config, configs, asked, key, left_out)


def _state(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError as error:
        raise ConfigError(f"{file.name} cannot be read: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns


def _on_host(parts: Mapping[str, Loaded]) -> list[str]:
    """Parts that ComfyUI computes on the CPU."""
    import comfy.model_management as mm

    found = {"clip": mm.text_encoder_device(), "vae": mm.vae_device()}
    return [
        part
        for part, loaded in parts.items()
        if loaded.on_host or (part in found and found[part].type == "cpu")
    ]


def _config(
    selector: Mapping[str, Any],
    settings: tuple[Mapping[str, Any], ...],
    forced: Override,
    device: torch.device,
) -> MemoryOptimizationConfig:
    level = forced.level or selector.get("level")
    budget = selector.get("budget_gb") if forced.budget_gb is None else forced.budget_gb
    cleanup = selector.get("cleanup", "pressure")
    if not isinstance(level, str) or not isinstance(cleanup, str):
        raise ConfigError("its Memory Level Selector has no level, or no policy of cleanup")
    config = selection.config_of(level, budget or 0.0, cleanup, snapshot(device))
    for changes in settings:
        config, _ = adjust(config, **changes)
    return config


def _ways(config: MemoryOptimizationConfig) -> list[MemoryOptimizationConfig]:
    if config.requested_level is OptimizationLevel.FASTEST:
        return list(candidates.levels_from(config))
    return [config]


def _here(device: torch.device) -> dict[str, Any]:
    """What the other process has to know of this one's ComfyUI and its device."""
    # Not before there is something to predict: they import what takes ComfyUI's start longer.
    from dataclasses import asdict

    import comfy.model_management as mm

    from ..plan_precision import Precision
    from ..plan_traces import loader_here

    profile = profiles.known(str(snapshot(device).name), str(torch.__version__))
    return {
        "comfyui": str(Path(str(mm.__file__)).absolute().parent.parent),
        "precision": Precision.here().to_dict(),
        "device": {
            "kernel": _kernel(device),
            "loader": asdict(loader_here()),
            "profile": profile.to_dict(),
        },
    }


def _kernel(device: torch.device) -> str:
    """The attention that is traced; a device that was never used is not asked."""
    if not backend.is_initialized(device):
        return "fused"
    if device not in _kernels:
        _kernels[device] = "fused" if has_fused_kernel(device) else "math"
    return _kernels[device]

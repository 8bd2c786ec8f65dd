"""The order of a run of the diffusers nodes: load -> optimise -> generate -> release."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .errors import TargetError
from .units import format_bytes

if TYPE_CHECKING:
    import torch

    from .handles import PipelineHandle
    from .levels import MemoryOptimizationConfig

logger = logging.getLogger("lowtide")


def folders() -> list[str]:
    """Names of the pipelines under models/diffusers."""
    from .adapters.models_folder import diffusers_folders

    return diffusers_folders()


def folder_fingerprint(folder: str) -> str:
    """Changes when a file of the pipeline's folder does; never raises."""
    from .adapters.pipelines_loader import fingerprint

    return fingerprint(folder)


def load(folder: str, dtype: str) -> PipelineHandle:
    """Load the pipeline called ``folder`` into host memory.

    Raises:
        PipelineLoadError: no such folder, no pipeline, or one that is not safe to load.
    """
    from .adapters import comfy
    from .adapters.models_folder import resolve
    from .adapters.pipelines_loader import load_pipeline
    from .backend import device_of
    from .handles import LoadedPipeline, PipelineHandle
    from .levels import MemoryOptimizationConfig, OptimizationLevel

    device = device_of(comfy.device())
    pipeline = load_pipeline(resolve(folder), dtype, device)
    config = MemoryOptimizationConfig.from_level(OptimizationLevel.NONE)
    return PipelineHandle(LoadedPipeline(pipeline, folder), config, device)


def optimize(config: MemoryOptimizationConfig, pipeline: Any) -> tuple[PipelineHandle, str]:
    """A handle on the same pipeline under ``config``, and the report of what was applied.

    Raises:
        TargetError: an input that is no configuration or no pipeline.
    """
    from .handles import PipelineHandle
    from .levels import MemoryOptimizationConfig

    handle = _handle(pipeline)
    if not isinstance(config, MemoryOptimizationConfig):
        raise TargetError(
            f"`config` is a {type(config).__name__}; plug in the config output of Lowtide Memory "
            f"Level Selector"
        )
    optimised = PipelineHandle(handle.loaded, config, handle.device)
    optimizer = optimised.activate()
    assert optimizer.report is not None
    return optimised, optimizer.report.text()


def generate(
    pipeline: Any,
    *,
    prompt: str,
    negative: str,
    width: int,
    height: int,
    steps: int,
    guidance: float,
    seed: int,
    batch_size: int,
) -> torch.Tensor:
    """Images (batch, height, width, 3), float32 in 0..1, on the CPU.

    Whatever ends the run, the device holds afterwards what it held before, less what the
    configuration's cleanup policy gives back.

    Raises:
        ConfigError: a size or a count the pipeline cannot work with.
        Interrupted: the user stopped the run (inside ComfyUI its own exception is raised).
    """
    from .adapters.generate import Request, check, run
    from .adapters.progress import progress_for

    handle = _handle(pipeline)
    request = Request(prompt, negative, width, height, steps, guidance, seed, batch_size)
    check(handle.pipeline, request)
    _make_room(handle)
    handle.activate()
    try:
        images = run(handle.pipeline, request, progress_for(handle.pipeline, request))
    except BaseException as error:  # an interrupt of ComfyUI's is no Exception
        handle.loaded.settle(handle.config, handle.device, error)
        raise
    handle.loaded.settle(handle.config, handle.device)
    return images


def _handle(pipeline: Any) -> PipelineHandle:
    from .handles import PipelineHandle

    if not isinstance(pipeline, PipelineHandle):
        raise TargetError(
            f"this is a {type(pipeline).__name__}, not a Lowtide pipeline; plug in the output of "
            f"Lowtide Load Diffusers Pipeline"
        )
    return pipeline


def _make_room(handle: PipelineHandle) -> None:
    """Ask ComfyUI to take its own models off the device before a pipeline needs the room."""
    from .adapters import comfy
    from .adapters.pipelines_loader import bytes_wanted

    if comfy.present():
        from .adapters.comfy.models import make_room

        freed = make_room(bytes_wanted(handle.pipeline, handle.config.offload))
        if freed:
            logger.info("ComfyUI gave back %s for a diffusers pipeline", format_bytes(freed))

"""The order of a run of the diffusers nodes: load -> optimise -> generate -> release."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import foresight, verified
from .adjust import check_config
from .errors import TargetError
from .later import planning
from .units import format_bytes

if TYPE_CHECKING:
    import torch

    from .adapters.generate import Request
    from .foresight import Chosen
    from .handles import PipelineHandle
    from .levels import MemoryOptimizationConfig
    from .planner.work import Work

logger = logging.getLogger("lowtide")

_MARGIN = 8
"""An eighth above the estimated need is asked for: what the allocator loses between blocks."""


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

    handle = _handle(pipeline)
    optimised = PipelineHandle(handle.loaded, check_config(config), handle.device)
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
        TargetError: a pipeline that takes no prompt, or lacks a component it needs.
        BudgetError: no level keeps the budget at this size; the message names the smallest.
        Interrupted: the user stopped the run (inside ComfyUI its own exception is raised).
    """
    from .adapters.generate import Request, check, run
    from .adapters.progress import progress_for
    from .monitor import MemoryMonitor

    handle = _handle(pipeline)
    request = Request(prompt, negative, width, height, steps, guidance, seed, batch_size)
    check(handle.pipeline, request)
    chosen = _fitted(handle, request)
    config = chosen.config
    _make_room(handle, chosen, request)
    shape = (chosen.images or request.batch_size, request.height, request.width)
    monitor = None
    try:
        with _watched(handle, config):
            _bring_under(handle, chosen, request)
            try:
                monitor = MemoryMonitor(handle.optimizer, False, device=handle.device, images=shape)
                with monitor:
                    progress = progress_for(handle.pipeline, request)
                    images = run(handle.pipeline, request, progress, chosen.images)
            except BaseException as error:  # an interrupt of ComfyUI's is no Exception
                handle.loaded.settle(config, handle.device, error)
                raise
    finally:
        if monitor is not None:
            verified.note(handle.loaded.name, monitor.verified, config.budget_bytes)
        if chosen.prepare is not None:
            planning.do(f"{handle.loaded.name} {request.width} {request.height}", chosen.prepare)
    handle.loaded.settle(config, handle.device)
    return images


def _handle(pipeline: Any) -> PipelineHandle:
    from .handles import PipelineHandle

    if not isinstance(pipeline, PipelineHandle):
        raise TargetError(
            f"this is a {type(pipeline).__name__}, not a Lowtide pipeline; plug in the output of "
            f"Lowtide Load Diffusers Pipeline"
        )
    return pipeline


def _fitted(handle: PipelineHandle, request: Request) -> Chosen:
    """The handle's configuration settled for this size and batch, or for a part of the batch."""
    from .adapters.pipelines import settle
    from .backend import device_of

    device = device_of(handle.device)
    chosen = settle(handle.config, handle.pipeline, device, _work(request), in_parts=True)
    for note in chosen.notes if foresight.wants(handle.config) else ():
        logger.info("%s x %s pixels: %s", request.width, request.height, note)
    if chosen.images is not None and chosen.images < request.batch_size:
        logger.info(
            "the budget holds %s of the %s images at once: they are made in parts",
            chosen.images,
            request.batch_size,
        )
    return chosen


def _work(request: Request) -> Work:
    from .planner.work import Work

    size = request.width, request.height
    guided = request.guidance > 1
    return Work(*size, batch=request.batch_size, steps=request.steps, guided=guided)


def _bring_under(handle: PipelineHandle, chosen: Chosen, request: Request) -> None:
    """Bring the pipeline under what the handle's configuration was settled to for this request."""
    work = replace(_work(request), batch=chosen.images or request.batch_size)
    handle.loaded.apply(handle.config, handle.device, work, chosen)


@contextmanager
def _watched(handle: PipelineHandle, config: MemoryOptimizationConfig) -> Iterator[None]:
    """Say so if more was allocated on the device meanwhile than the budget allows."""
    if config.budget_bytes is None:
        yield
        return
    from .backend import device_of
    from .peaks import PeakWindow

    window = PeakWindow(device_of(handle.device))
    try:
        yield
    finally:
        peak = window.close().allocated
        if peak is not None and peak > config.budget_bytes:
            logger.warning(
                "%s was allocated at the peak of this run, more than its budget of %s; what a "
                "pipeline needs is an estimate. Give a smaller size or batch, or a higher level",
                format_bytes(peak),
                format_bytes(config.budget_bytes),
            )


def _make_room(handle: PipelineHandle, chosen: Chosen, request: Request) -> None:
    """Have other models leave the device where this run needs the room: ComfyUI's, then ours."""
    from .adapters import comfy
    from .adapters.pipelines_loader import bytes_wanted

    if comfy.present():
        from .adapters.comfy.models import make_room

        freed = make_room(bytes_wanted(handle.pipeline, chosen.config.offload))
        if freed:
            logger.info("ComfyUI gave back %s for a diffusers pipeline", format_bytes(freed))
    _release_idle_pipelines(handle, chosen, request)


def _release_idle_pipelines(handle: PipelineHandle, chosen: Chosen, request: Request) -> None:
    from .adapters.diffusers import modules_of
    from .backend import device_of
    from .handles import live_pipelines
    from .strategies import budget

    device = device_of(handle.device)
    if device.type == "cpu":
        return
    config = chosen.config
    predicted = [stage.predicted for stage in chosen.stages if stage.predicted is not None]
    need = max(predicted, default=0)
    if not need:
        parts, images = modules_of(handle.pipeline), request.batch_size
        edge = _work(request).edge
        need = budget.estimate(config, handle.pipeline, parts, edge=edge, images=images).total
    wanted = need + need // _MARGIN
    for other in live_pipelines():
        held = 0 if other.pipeline is handle.pipeline else other.on_device(device)
        if not held:
            continue
        if wanted <= _room(handle, config, device):
            return
        other.release(device)
        logger.info("the pipeline %s gave back %s for another", other.name, format_bytes(held))


def _room(handle: PipelineHandle, config: MemoryOptimizationConfig, device: torch.device) -> int:
    """Bytes the pipeline may use, what it holds included; 0 where the device does not say."""
    from . import backend

    info = backend.mem_get_info(device)
    allocated, reserved = backend.allocated(device), backend.reserved(device)
    if info is None or allocated is None or reserved is None:
        return 0
    own = handle.loaded.on_device(device)
    room = info[0] + reserved - allocated + own
    if config.budget_bytes is not None:
        room = min(room, config.budget_bytes - allocated + own)
    return room

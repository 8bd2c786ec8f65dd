"""What a monitored run of a pipeline leaves in the history: a row for each stage, and one for all.

Whose configuration is not known is left out: a pipeline that is watched without its optimizer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import backend, learning
from .device import snapshot
from .foresight import WHOLE
from .history_rows import FAILED, FITS, INTERRUPTED, OUT_OF_MEMORY, Key, Row
from .levels import MemoryOptimizationConfig
from .rescue import is_out_of_memory
from .run_key import pipeline_key, positions
from .stage_names import DENOISING
from .targets import is_optimizer, parts_of, pipeline_of
from .verified import Verified

if TYPE_CHECKING:
    from .monitor import MemoryMonitor

logger = logging.getLogger("lowtide")


def keep(
    monitor: MemoryMonitor,
    target: Any,
    error: BaseException | None,
    *,
    images: tuple[int, int, int] | None,
    latents: Sequence[int] | None,
) -> list[Verified]:
    """Hand a finished block's figures to the history; never raises.

    Returns what was foretold of its stages beside what was measured.

    Args:
        images: (count, height, width) in pixels; ``None`` = by ``latents``.
        latents: shape of what the denoiser was given.
    """
    try:
        pipeline = pipeline_of(target)
        images = images or (None if pipeline is None else _images(pipeline, latents))
        if not is_optimizer(target) or pipeline is None or images is None:
            return []
        config = target.config
        key = _key(pipeline, config, monitor.device, images)
        level, ended = config.level.value, _outcome(error)
        figures = {name: (it.allocated, it.reserved, it.seconds) for name, it in _stages(monitor)}
        if config.history and learning.active():
            info = backend.mem_get_info(monitor.device) if monitor.device.type != "cpu" else None
            free = None if info is None else info[0] + (backend.reserved(monitor.device) or 0)
            now = time.time()
            learning.log(lambda: _rows(key, level, ended, figures, free, now))
        return [
            Verified(name, learning.foretold(key, name).corrected, figures[name][0])
            for name in monitor.stages
        ]
    except Exception:  # a run never fails for its history
        logger.exception("a run was not handed to the history")
        return []


def ran_out(
    pipeline: Any,
    config: MemoryOptimizationConfig,
    device: torch.device,
    images: tuple[int, int, int],
    free: int | None,
) -> None:
    """Tell the history that ``config`` ran out of memory before a run even began; never raises.

    Args:
        images: count, height and width in pixels of the run it was applied for.
        free: what the process could use of the device in all.
    """
    try:
        if config.history and learning.active():
            key = _key(pipeline, config, device, images)
            row = Row(key, DENOISING, config.level.value, time.time(), OUT_OF_MEMORY, free=free)
            learning.log(lambda: [row])
    except Exception:  # what failed is told by its own error
        logger.exception("a failure was not handed to the history")


def _stages(monitor: MemoryMonitor) -> list[tuple[str, Any]]:
    from .monitor import StagePeak

    whole = StagePeak(monitor.peak_allocated, monitor.peak_reserved, monitor.seconds)
    return [*monitor.stages.items(), (WHOLE, whole)]


def _rows(
    key: Key,
    level: str,
    outcome: str,
    figures: dict[str, tuple[int | None, int | None, float]],
    free: int | None,
    at: float,
) -> list[Row]:
    found = []
    for stage, (allocated, reserved, seconds) in figures.items():
        predicted, predicted_seconds = learning.expected(key, stage)
        found.append(
            Row(
                key,
                stage,
                level,
                at,
                outcome,
                predicted=predicted,
                measured=allocated,
                reserved=reserved,
                predicted_seconds=predicted_seconds,
                seconds=seconds,
                free=free,
            )
        )
    return found


def _key(
    pipeline: Any,
    config: MemoryOptimizationConfig,
    device: torch.device,
    images: tuple[int, int, int],
) -> Key:
    modules = [part for _, part in parts_of(pipeline) if isinstance(part, torch.nn.Module)]
    version = str(torch.__version__)
    return pipeline_key(snapshot(device), type(pipeline).__name__, modules, config, images, version)


def _images(pipeline: Any, latents: Sequence[int] | None) -> tuple[int, int, int] | None:
    """(count, height, width) in pixels by the latents' shape; height 1 where they are packed."""
    if latents is None or len(latents) < 3:
        return None
    factor = int(getattr(pipeline, "vae_scale_factor", 8))
    count = int(latents[0])
    if getattr(pipeline, "do_classifier_free_guidance", False) is True and count % 2 == 0:
        count //= 2  # each image goes twice through the denoiser, in one batch
    if len(latents) == 3:  # (batch, positions, channels): two by two latents each
        return count, 1, int(latents[1]) * (2 * factor) ** 2
    height, width = int(latents[-2]) * factor, int(latents[-1]) * factor
    frames = positions(latents) // (int(latents[0]) * int(latents[-2]) * int(latents[-1]))
    return count * frames, height, width


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return FITS
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    return INTERRUPTED if "interrupt" in type(error).__name__.lower() else FAILED

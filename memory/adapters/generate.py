"""Runs a text-to-image diffusers pipeline, whatever its signature takes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError, TargetError
from ..planner.batches import split
from ..stages import DECODING, DENOISING, stage_of
from .progress import Progress

_SEED_LIMIT = 1 << 64


@dataclass(frozen=True)
class Request:
    """What to generate; sizes in pixels."""

    prompt: str
    negative: str
    width: int
    height: int
    steps: int
    guidance: float
    seed: int
    batch_size: int


def check(pipeline: Any, request: Request) -> None:
    """Refuse what cannot run, before anything is moved.

    Raises:
        ConfigError: a size or a count the pipeline cannot work with.
        TargetError: a pipeline that takes no prompt, or lacks a component it ends or works with.
    """
    factor = _factor(pipeline)
    for name in ("width", "height"):
        size = getattr(request, name)
        if size < factor or size % factor:
            lower = size // factor * factor
            nearest = [edge for edge in (lower, lower + factor) if edge >= factor]
            raise ConfigError(
                f"`{name}` = {size} pixels does not suit this pipeline, which works in steps of "
                f"{factor}; give {' or '.join(map(str, nearest[:2]))}"
            )
    for name in ("steps", "batch_size"):
        if getattr(request, name) < 1:
            raise ConfigError(f"`{name}` = {getattr(request, name)}; give 1 or more")
    if not 0 <= request.seed < _SEED_LIMIT:
        raise ConfigError(f"`seed` = {request.seed}; give a number from 0 to 2**64 - 1")
    if "prompt" not in inspect.signature(type(pipeline).__call__).parameters:
        raise TargetError(
            f"{type(pipeline).__name__} takes no prompt; load a text-to-image pipeline"
        )
    missing = _missing(pipeline)
    if missing:
        raise TargetError(
            f"this {type(pipeline).__name__} has no {' and no '.join(missing)} loaded, without "
            f"which it makes no image; load a pipeline whose folder has "
            f"{'them' if len(missing) > 1 else 'it'}, and whose model_index.json names "
            f"{'them' if len(missing) > 1 else 'it'}"
        )


def run(
    pipeline: Any, request: Request, progress: Progress, at_once: int | None = None
) -> torch.Tensor:
    """Images (batch, height, width, 3), float32 in 0..1, on the CPU.

    Each image starts from noise of its own, whose seed is the request's plus its number: so the
    images are the same however they are divided, up to the rounding of a smaller batch.

    Args:
        at_once: images that are made together; ``None`` = all.
    """
    sizes = split(request.batch_size, at_once or request.batch_size)
    bar = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**{**bar, "disable": True})
    made: list[torch.Tensor] = []
    done = 0
    try:
        for number, size in enumerate(sizes):
            progress.check()
            report = _reporter(request.steps, progress, number, len(sizes))
            given = _arguments(pipeline, request, done, size, report)
            # ComfyUI runs nodes in inference mode, whose tensors offload hooks could not write to
            # afterwards.
            with torch.inference_mode(False), torch.no_grad():
                made.append(_as_images(pipeline(**given).images))
            done += size
        return made[0] if len(made) == 1 else torch.cat(made)
    finally:
        pipeline.set_progress_bar_config(**{"disable": False, **bar})


def _arguments(
    pipeline: Any, request: Request, first: int, count: int, report: Any
) -> dict[str, Any]:
    """What the pipeline takes of a request, for ``count`` images from number ``first`` on."""
    takes = inspect.signature(type(pipeline).__call__).parameters
    # On the CPU, so that every device and every level starts from the same noise.
    noise = [
        torch.Generator("cpu").manual_seed((request.seed + number) % _SEED_LIMIT)
        for number in range(first, first + count)
    ]
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.steps,
        "num_images_per_prompt": count,
        "guidance_scale": request.guidance,
        "generator": noise if count > 1 else noise[0],
        "output_type": "pt",
        "callback_on_step_end": report,
    }
    if request.negative:
        arguments["negative_prompt"] = request.negative
    return {name: value for name, value in arguments.items() if name in takes}


def _reporter(steps: int, progress: Progress, part: int, parts: int) -> Any:
    def report(_pipeline: Any, step: int, _timestep: Any, held: dict[str, Any]) -> dict[str, Any]:
        progress.step(part * steps + step + 1, parts * steps, held.get("latents"))
        progress.check()
        return held

    return report


def _missing(pipeline: Any) -> list[str]:
    """Denoisers and VAEs the pipeline's class asks for and this one lacks.

    A pipeline notices a missing VAE only once every step is done.
    """
    optional = getattr(pipeline, "_optional_components", ())
    return [
        name
        for name in inspect.signature(type(pipeline).__init__).parameters
        if stage_of(name) in (DENOISING, DECODING)
        and name not in optional
        and getattr(pipeline, name, None) is None
    ]


def _factor(pipeline: Any) -> int:
    """Pixels a size must be a multiple of: the VAE's factor, doubled where latents are packed."""
    factor = int(getattr(pipeline, "vae_scale_factor", 8))
    return factor * 2 if hasattr(pipeline, "_pack_latents") else factor


def _as_images(images: Any) -> torch.Tensor:
    if not isinstance(images, torch.Tensor):
        images = torch.stack([torch.as_tensor(image) for image in images])
    return images.detach().permute(0, 2, 3, 1).to("cpu", torch.float32).clamp(0, 1).contiguous()

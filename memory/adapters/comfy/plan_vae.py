"""What a VAE's decode or encode would be under a configuration, and its trace.

The choice between whole images, exact strips and blended tiles is that of the run (``vae_jobs``).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ...levels import MemoryOptimizationConfig
from ...planner.trace import Trace
from ...planner.work import Work
from ...strategies.exact_tiling import known, strips
from .vae import VaePlan
from .vae_jobs import Job, choose
from .vae_room import Room

DECODE_WORK, ENCODE_WORK = "decode", "encode"
_UNBOUNDED = 1 << 50
_COLOURS = 3


@dataclass(frozen=True)
class _Asked:
    """A VAE as ``vae_jobs.choose`` looks at one of ours; everything else is the VAE's own."""

    vae: Any
    lowtide_plan: VaePlan
    lowtide_estimates: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "vae"), name)


@dataclass(frozen=True)
class VaeWork:
    """One decode or encode of ``images`` at once, and how it would be cut."""

    kind: str
    images: int
    shape: tuple[int, ...]
    job: Job

    def key(self) -> dict[str, Any]:
        """What its trace depends on besides the weights."""
        return {"vae work": self.kind, "shape": self.shape, "job": repr(self.job)}


def chunk_of(config: MemoryOptimizationConfig, work: Work) -> int:
    """Images the VAE works on at once; the core takes as many as it has memory for."""
    if not config.enable_vae_slicing:
        return work.batch if config.budget_bytes is None else 1
    return min(work.batch, config.vae_decode_chunk_size or 1)


def vae_work(
    vae: Any, kind: str, config: MemoryOptimizationConfig, work: Work, most: int | None = None
) -> VaeWork:
    """How ``vae`` would decode or encode the images of ``work``.

    Args:
        most: bytes of the device for it beside its weights; ``None`` = as many as it likes.
    """
    images = chunk_of(config, work)
    exact = (
        vae.latent_dim == 2 and known(vae.first_stage_model) and config.vae_tile_mode != "blended"
    )
    plan = VaePlan(
        config if config.enable_vae_tiling else None,
        leave=False,
        budget=config.budget_bytes,
        chunk=images,
        exact=exact,
    )
    estimates = vars(vae).get("lowtide_estimates") or {
        name: getattr(vae, f"memory_used_{name}") for name in (DECODE_WORK, ENCODE_WORK)
    }
    shape = _shape(vae, kind, work, images)
    room = _UNBOUNDED if most is None else max(0, most)
    job = choose(_Asked(vae, plan, estimates), kind, shape, Room(room, room))
    return VaeWork(kind, images, shape, job)


def record_vae(vae: Any, twin: Any, mode: Any, asked: VaeWork, attention: str) -> Trace:
    """The trace of one call of it on ``twin``, the VAE's model in fakes of ``mode``."""
    from ...tracing import record

    decodes = asked.kind == DECODE_WORK
    tile = asked.job.tile
    shape = asked.shape
    if tile is not None:
        *rest, height, width = shape
        if tile.frames is not None and len(rest) == 3:
            rest[2] = min(rest[2], tile.frames)
        high = tile.edge if tile.high is None else tile.high
        shape = (*rest, min(height, high), min(width, tile.edge))
    cut = asked.job.strips
    plan = None if cut is None else strips(twin, "decoder" if decodes else "encoder", cut)
    with mode:
        given = torch.empty(shape, dtype=vae.vae_dtype, device="cuda:0")

    def run() -> Any:
        with nullcontext() if plan is None else plan:
            made = twin.decode(given) if decodes else twin.encode(given)
            # Tiles are widened where they were made, whole images on the host.
            return made.to("cpu").float() if tile is None else made.float().to("cpu")

    return record(twin, run, mode, [given], attention=attention)


def calls_of(asked: VaeWork, work: Work) -> int:
    """How often it is called for all images: chunks of the batch, and tiles."""
    chunks = -(-work.batch // asked.images)
    tile = asked.job.tile
    if tile is None:
        return chunks
    step = max(1, tile.edge - tile.overlap)
    count = 1
    for length in asked.shape[-2:]:
        count *= max(1, -(-(length - tile.overlap) // step))
    return chunks * count


def _shape(vae: Any, kind: str, work: Work, images: int) -> tuple[int, ...]:
    """Of the latent, or of the pixels with their channels first."""
    if kind == DECODE_WORK:
        factor = int(vae.spacial_compression_decode())
        size: tuple[int, ...] = (work.height // factor, work.width // factor)
        channels = int(vae.latent_channels)
        if vae.latent_dim == 3:
            size = ((work.frames - 1) // _frames_in_one(vae) + 1, *size)
        return (images, channels, *size)
    size = (work.height, work.width)
    return (images, _COLOURS, *((work.frames,) if vae.latent_dim == 3 else ()), *size)


def _frames_in_one(vae: Any) -> int:
    asked = getattr(vae, "temporal_compression_decode", None)
    return int((asked() if asked is not None else None) or 4)

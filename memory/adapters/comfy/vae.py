"""A VAE that works in tiles and leaves the device when it is done.

A copy of a generated subclass. Where every layer is known ``decode`` and ``encode`` are the core's
own, with the layers working in strips, exactly; elsewhere they go through the core's tiled methods
with every argument given. The estimates the core makes room by are those of what is done.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, TargetError
from ...levels import MemoryOptimizationConfig
from ...strategies.exact_tiling import known, strips
from .budget import Turn, make_room, measured_need, under
from .compatibility import left_alone
from .patchers import is_dynamic
from .residency import Residency
from .staying import after_turn
from .tile import clamped, given, pixels_shape
from .vae_jobs import Job, choose, gentle, is_tiny, tiles, tiles_itself
from .vae_room import room_of, weights_of

if TYPE_CHECKING:
    _Vae = Any
else:
    _Vae = object

logger = logging.getLogger("lowtide")

_classes: dict[type, type] = {}


@dataclass(frozen=True)
class VaePlan:
    """What a copy does: ``config`` for tiles (``None`` = none), and whether it leaves.

    ``chunk`` is how many images of a batch are worked on at once; ``None`` leaves it to the core,
    which takes as many as it has memory for. ``exact`` is settled by ``tiling``: strips instead of
    blended tiles. ``plan`` is the configuration's name, for the history. ``stays`` and ``cleanup``
    are those of a ``Residency``, under a budget.
    """

    config: MemoryOptimizationConfig | None
    leave: bool
    budget: int | None = None
    chunk: int | None = None
    exact: bool = False
    plan: str = ""
    stays: bool = False
    cleanup: str = "off"


class TilingVae(_Vae):
    """Mixed into a VAE's class by ``tiling``."""

    lowtide_plan: VaePlan
    lowtide_estimates: dict[str, Any]
    lowtide_job: Job | None = None
    """What is being done; ``None`` between two calls."""

    def decode(self, samples_in: Any, *args: Any, **kwargs: Any) -> Any:
        """As the core's; in tiles unless the latent fits one."""
        samples = _plain(self, samples_in)
        options = _has_options(args, kwargs)
        with _Working(self, "decode", samples.shape, cut=not options) as job:
            if options:
                return super().decode(samples, *args, **kwargs)
            if job.tile is not None:
                return super().decode_tiled(samples, **job.tile.arguments())
            if job.strips is None:
                return self._in_chunks(super().decode, samples)
            with strips(self.first_stage_model, "decoder", job.strips):
                return self._in_chunks(super().decode, samples)

    def encode(self, pixel_samples: Any, *args: Any, **kwargs: Any) -> Any:
        """As the core's; in tiles unless the image fits one."""
        options = _has_options(args, kwargs)
        # The older core's tiled method takes one video at most.
        whole = options or pixel_samples.ndim == 5
        shape = pixels_shape(self, pixel_samples)
        with _Working(self, "encode", shape, cut=not whole) as job:
            if job.tile is not None:
                return super().encode_tiled(pixel_samples, **job.tile.arguments())
            if options or not self._holds_images(pixel_samples):
                return super().encode(pixel_samples, *args, **kwargs)
            if job.strips is None:
                return self._in_chunks(super().encode, pixel_samples)
            with strips(self.first_stage_model, "encoder", job.strips):
                return self._in_chunks(super().encode, pixel_samples)

    def decode_tiled(self, samples: Any, *args: Any, **kwargs: Any) -> Any:
        """As the core's, with the caller's tiles."""
        asked = given(*args, **kwargs) if tiles(self) else None
        with _Working(self, "decode", samples.shape, Job(0, asked)):
            return super().decode_tiled(samples, *args, **kwargs)

    def encode_tiled(self, pixel_samples: Any, *args: Any, **kwargs: Any) -> Any:
        """As the core's, with the caller's tiles."""
        asked = given(*args, **kwargs) if tiles(self) else None
        with _Working(self, "encode", pixels_shape(self, pixel_samples), Job(0, asked)):
            return super().encode_tiled(pixel_samples, *args, **kwargs)

    def memory_used_decode(self, shape: Any, dtype: Any) -> Any:
        """The VAE's own estimate, of one tile while tiles are decoded; of strips what they take."""
        return self._memory_used("decode", shape, dtype)

    def memory_used_encode(self, shape: Any, dtype: Any) -> Any:
        """As of decoding."""
        return self._memory_used("encode", shape, dtype)

    def _memory_used(self, work: str, shape: Any, dtype: Any) -> Any:
        job = self.lowtide_job
        if job is not None and job.strips is not None:
            return job.need
        # A VAE that cuts its own tiles knows in its estimate what they take.
        tile = None if job is None or tiles_itself(self) else job.tile
        return self.lowtide_estimates[work](clamped(shape, tile), dtype)

    def _in_chunks(self, work: Callable[[Any], Any], batch: Any) -> Any:
        """``work`` on a few items of the batch at a time, into one buffer for them all."""
        chunk = self.lowtide_plan.chunk
        count = batch.shape[0]
        if chunk is None or count <= chunk or not tiles(self):
            return work(batch)
        whole = None
        for first in range(0, count, chunk):
            part = work(batch[first : first + chunk])
            if whole is None:
                whole = part.new_empty((count, *part.shape[1:]))
            whole[first : first + chunk] = part
        return whole

    def _holds_images(self, pixels: Any) -> bool:
        """Whether the first dimension counts images or videos, and not one video's frames."""
        return bool(self.latent_dim == 2 or pixels.ndim == 5 or getattr(self, "not_video", False))


class _Working:
    """While the VAE works: what it does and takes, room for that, and then off the device."""

    def __init__(
        self, vae: TilingVae, work: str, shape: Any, asked: Job | None = None, *, cut: bool = True
    ) -> None:
        self.vae = vae
        self.work = work
        self.shape = tuple(int(length) for length in shape)
        self.asked = asked
        self.cut = cut

    def __enter__(self) -> Job:
        vae = self.vae
        vae.throw_exception_if_invalid()
        try:
            vae.lowtide_job = job = self._settle()
            self.turn = self._turn(job)
            self.turn.begin()
        except BaseException:  # without an __enter__ there is no __exit__
            self._leave(failed=True)
            raise
        if self.cut and self.asked is None:
            size = "x".join(str(length) for length in self.shape[-2:])
            logger.info("VAE %s of %s: %s", self.work, size, job.text())
        return job

    def _settle(self) -> Job:
        """The job, with room made for it under a budget."""
        vae, budget = self.vae, self.vae.lowtide_plan.budget
        job = self._job(settled=False)
        if budget is None:
            return job
        known = measured_need(vae.patcher, self._question(job), budget)
        make_room([vae.patcher], budget, known or job.need + weights_of(vae))
        # What is still there does not leave, and the job has to do beside it.
        return self._job(settled=True)

    def _job(self, settled: bool) -> Job:
        vae, asked = self.vae, self.asked
        if asked is None and self.cut:
            room = room_of(vae, vae.lowtide_plan.budget, settled=settled)
            return choose(vae, self.work, self.shape, room)
        tile = None if asked is None else asked.tile
        estimate = vae.lowtide_estimates[self.work]
        return Job(int(estimate(clamped(self.shape, tile), vae.vae_dtype)), tile)

    def _turn(self, job: Job) -> Turn:
        """The VAE's own estimates may be low; the plan of strips is not."""
        estimate = job.need if job.strips is not None else int(1.5 * job.need)
        return Turn(self.vae.patcher, self._question(job), "vae", "a smaller image", estimate)

    def _question(self, job: Job) -> tuple[Any, ...]:
        return (self.work, self.shape, job.need)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.turn.end(failed=kind is not None)
        finally:
            self._leave(failed=kind is not None)

    def _leave(self, *, failed: bool) -> None:
        self.vae.lowtide_job = None
        if self.vae.lowtide_plan.leave:
            after_turn(self.vae.patcher, failed=failed)


def tiling(vae: Any, plan: VaePlan) -> Any:
    """A copy of a VAE that follows ``plan``; ``vae`` stays as it is.

    Raises:
        TargetError: the VAE has no weights.
        ConfigError: a tile size that does not suit the VAE.
    """
    if getattr(vae, "first_stage_model", None) is None:
        raise TargetError(
            "this VAE has no weights (its checkpoint contains none); load a VAE with Load VAE"
        )
    if plan.config is not None and tiles(vae):
        plan.config.validate(vae_factor=int(vae.spacial_compression_decode()))
        plan = replace(plan, exact=_exactly(plan.config, vae))
    twin = copy.copy(vae)
    twin.patcher = vae.patcher.clone()
    if plan.budget is not None and not is_dynamic(vae.patcher) and left_alone(vae.patcher) is None:
        whole = bool(getattr(vae, "disable_offload", False))
        residency = Residency(None, plan.budget, cleanup=plan.cleanup, stays=plan.stays, turn="vae")
        twin.patcher = under(twin.patcher, residency, whole=whole)
    base = type(twin)
    if not issubclass(base, TilingVae):
        known = _classes.get(base)
        if known is None:
            known = _classes[base] = type(f"Tiling{base.__name__}", (TilingVae, base), {})
        # The estimates are attributes of the instance and would hide the methods above.
        twin.lowtide_estimates = {
            work: twin.__dict__.pop(f"memory_used_{work}", getattr(vae, f"memory_used_{work}"))
            for work in ("decode", "encode")
        }
        twin.__class__ = known
    twin.lowtide_plan = plan
    twin.lowtide_job = None
    return twin


def described(vae: Any) -> tuple[str, str] | None:
    """How a copy made by ``tiling`` cuts its work: the strategy and a sentence; ``None`` = not."""
    config = vae.lowtide_plan.config
    if config is None or not tiles(vae):
        return None
    by_hand = config.vae_tile_size
    edge = f"at most {config.tile_limit} pixels, by the image and the memory there is"
    if by_hand is not None:
        edge = f"{by_hand} pixels"
    if vae.lowtide_plan.exact:
        keep = "as far as the budget leaves them room"
        if vae.lowtide_plan.budget is None:
            keep = "up to half of the whole image's memory" if gentle(config) else ""
        maps = f"maps on the device {keep}, else in host memory" if keep else "maps in host memory"
        return "exact vae tiling", f"in strips, at the memory of tiles of {edge}; {maps}"
    shared = f"{config.vae_tile_overlap:.0%} shared"
    if tiles_itself(vae):
        return "vae tiling", f"the VAE's own tiles, asked for {edge}"
    if is_tiny(vae) and config.vae_tile_mode == "auto" and by_hand is None:
        return "vae tiling", "whole while memory lasts, for it takes little; else blended tiles"
    return "vae tiling", f"blended tiles of {edge}, {shared}"


def _exactly(config: MemoryOptimizationConfig, vae: Any) -> bool:
    """Whether the VAE is to work in strips.

    Raises:
        ConfigError: the configuration insists, and the VAE has layers that are not known.
    """
    possible = bool(vae.latent_dim == 2 and known(vae.first_stage_model))
    if config.vae_tile_mode == "exact" and not possible:
        raise ConfigError(
            f"`vae_tile_mode` = 'exact', but this {type(vae.first_stage_model).__name__} cannot be "
            f"tiled exactly: it has layers of other kinds than those known; set "
            f"vae_tile_mode='auto' to blend tiles there"
        )
    return possible and config.vae_tile_mode != "blended"


def _plain(vae: Any, samples: Any) -> Any:
    """The latent as the core's tiled method takes it: a tensor of the VAE's own dimensions."""
    if getattr(samples, "is_nested", False):
        samples = samples.unbind()[0]
    if vae.latent_dim == 2 and samples.ndim == 5:
        samples = samples[:, :, 0]
    return samples


def _has_options(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the caller passed the VAE options of its own, which tiled methods don't take."""
    return any(bool(value) for value in (*args, *kwargs.values()))

"""A VAE that works in tiles and leaves the device when it is done.

A copy of a generated subclass. Where every layer is known ``decode`` and ``encode`` are the core's
own, with the layers working in strips, exactly; elsewhere they go through the core's tiled methods
with every argument given. The estimates the core makes room by are those of one tile.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, TargetError
from ...levels import MemoryOptimizationConfig
from ...strategies.exact_tiling import known, strips
from .budget import Turn, under
from .compatibility import left_alone
from .models import leave_device
from .patchers import is_dynamic, residency_of
from .tile import Tile, channels_first, clamped

if TYPE_CHECKING:
    _Vae = Any
else:
    _Vae = object

FRAMES = 64
"""Frames of video in one tile, and shared by neighbours: the core's own defaults."""
FRAMES_SHARED = 8
_LATENTS = 16
"""Smallest tile edge chosen by itself, in latents. The core also cuts tiles half as wide; narrower
ones than eight latents show their seams."""

_classes: dict[type, type] = {}


@dataclass(frozen=True)
class VaePlan:
    """What a copy does: ``config`` for tiles (``None`` = none), and whether it leaves.

    ``chunk`` is how many images of a batch are worked on at once; ``None`` leaves it to the core,
    which takes as many as it has memory for. ``exact`` is settled by ``tiling``: strips instead of
    blended tiles.
    """

    config: MemoryOptimizationConfig | None
    leave: bool
    budget: int | None = None
    chunk: int | None = None
    exact: bool = False


class TilingVae(_Vae):
    """Mixed into a VAE's class by ``tiling``."""

    lowtide_plan: VaePlan
    lowtide_estimates: dict[str, Any]
    lowtide_tile: Tile | None = None

    def decode(self, samples_in: Any, *args: Any, **kwargs: Any) -> Any:
        """As the core's; in tiles unless the latent fits one."""
        samples = _plain(self, samples_in)
        tile = None if _has_options(args, kwargs) else self._tile_of_latent(samples)
        with _Working(self, tile, samples.shape, "decode"):
            if tile is None:
                if _has_options(args, kwargs):
                    return super().decode(samples, *args, **kwargs)
                return self._in_chunks(super().decode, samples)
            if self._in_strips():
                factor = int(self.spacial_compression_decode())
                with strips(self.first_stage_model, "decoder", tile.edge * factor, factor):
                    return self._in_chunks(super().decode, samples)
            return super().decode_tiled(samples, **tile.arguments())

    def encode(self, pixel_samples: Any, *args: Any, **kwargs: Any) -> Any:
        """As the core's; in tiles unless the image fits one."""
        tile = None if _has_options(args, kwargs) else self._tile_of_pixels(pixel_samples)
        with _Working(self, tile, channels_first(pixel_samples.shape), "encode"):
            if tile is None:
                if _has_options(args, kwargs) or not self._holds_images(pixel_samples):
                    return super().encode(pixel_samples, *args, **kwargs)
                return self._in_chunks(super().encode, pixel_samples)
            if self._in_strips():
                with strips(self.first_stage_model, "encoder", tile.edge, 1):
                    return self._in_chunks(super().encode, pixel_samples)
            return super().encode_tiled(pixel_samples, **tile.arguments())

    def decode_tiled(self, samples: Any, *args: Any, **kwargs: Any) -> Any:
        """As the core's, with the caller's tiles."""
        with _Working(self, None, samples.shape, "decode"):
            return super().decode_tiled(samples, *args, **kwargs)

    def encode_tiled(self, pixel_samples: Any, *args: Any, **kwargs: Any) -> Any:
        """As the core's, with the caller's tiles."""
        with _Working(self, None, channels_first(pixel_samples.shape), "encode"):
            return super().encode_tiled(pixel_samples, *args, **kwargs)

    def memory_used_decode(self, shape: Any, dtype: Any) -> Any:
        """The VAE's own estimate, of one tile while tiles are decoded."""
        return self.lowtide_estimates["decode"](clamped(shape, self.lowtide_tile), dtype)

    def memory_used_encode(self, shape: Any, dtype: Any) -> Any:
        """The VAE's own estimate, of one tile while tiles are encoded."""
        return self.lowtide_estimates["encode"](clamped(shape, self.lowtide_tile), dtype)

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

    def _in_strips(self) -> bool:
        """Asked at every call: other nodes may have changed the layers since."""
        return self.lowtide_plan.exact and known(self.first_stage_model)

    def _tile_of_latent(self, samples: Any) -> Tile | None:
        factor = int(self.spacial_compression_decode())
        frames = shared = None
        per_latent = self.temporal_compression_decode()
        if per_latent is not None:
            frames = max(2, FRAMES // per_latent)
            shared = max(1, min(frames // 2, FRAMES_SHARED // per_latent))

        def tile(edge: int) -> Tile:
            latents = edge // factor
            return Tile(latents, self._overlap(latents), frames, shared)

        return self._fitting("decode", samples.shape, factor, tile)

    def _tile_of_pixels(self, pixels: Any) -> Tile | None:
        if pixels.ndim == 5:
            return None  # a batch of videos: the older core's tiled method takes one at most
        factor = int(self.spacial_compression_encode())

        def tile(edge: int) -> Tile:
            return Tile(edge, self._overlap(edge // factor) * factor, FRAMES, FRAMES_SHARED)

        return self._fitting("encode", channels_first(pixels.shape), factor, tile)

    def _fitting(
        self, work: str, shape: Any, factor: int, tile: Callable[[int], Tile]
    ) -> Tile | None:
        """The tile for a shape, made by ``tile`` from an edge in pixels; ``None`` = no tiles.

        Under a budget it is halved until the VAE's own estimate of one tile fits.
        """
        config = self.lowtide_plan.config
        if config is None or not tiles(self):
            return None
        scale = factor if work == "decode" else 1
        height, width = (int(length) * scale for length in shape[-2:])
        least = _LATENTS * factor
        edge = config.tile_for(height, width)
        if config.vae_tile_size is None:
            edge = max(edge, least)
        edge = edge // factor * factor
        budget = self.lowtide_plan.budget
        if budget is not None and config.vae_tile_size is None:
            room = budget - min(self._streamed(), int(self.patcher.model_size()))
            estimate = self.lowtide_estimates[work]
            while edge > least and estimate(clamped(shape, tile(edge)), self.vae_dtype) > room:
                edge = max(least, edge // 2 // factor * factor)
        return None if max(height, width) <= edge else tile(edge)

    def _streamed(self) -> int:
        """Bytes its weights take on the device at least while it works under a budget."""
        residency = residency_of(self.patcher)
        streams = residency is not None and residency.streaming
        return int(streams or self.patcher.model_size())

    def _overlap(self, latents: int) -> int:
        """Latents shared by neighbours. The core also cuts tiles half as wide and twice as high,
        and those must stay wider than what they share."""
        assert self.lowtide_plan.config is not None
        wanted = round(latents * self.lowtide_plan.config.vae_tile_overlap)
        return int(min(wanted, latents // 4))


class _Working:
    """While the VAE works: one tile's estimate, room under the budget, and then off the device."""

    def __init__(self, vae: TilingVae, tile: Tile | None, shape: Any, work: str) -> None:
        self.vae = vae
        self.tile = tile
        self.shape = shape
        self.work = work

    def __enter__(self) -> None:
        vae = self.vae
        vae.throw_exception_if_invalid()
        vae.lowtide_tile = self.tile
        one = clamped(self.shape, self.tile)
        estimate = int(1.5 * float(vae.lowtide_estimates[self.work](one, vae.vae_dtype)))
        question = (self.work, tuple(self.shape), self.tile, vae.lowtide_plan.exact)
        self.turn = Turn(vae.patcher, question, "vae", "a smaller image", estimate)
        try:
            self.turn.begin()
        except BaseException:  # without an __enter__ there is no __exit__
            self._leave()
            raise

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.turn.end(failed=kind is not None)
        finally:
            self._leave()

    def _leave(self) -> None:
        self.vae.lowtide_tile = None
        if self.vae.lowtide_plan.leave:
            leave_device(self.vae.patcher)


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
        twin.patcher = under(twin.patcher, plan.budget, whole=whole)
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
    twin.lowtide_tile = None
    return twin


def tiles(vae: Any) -> bool:
    """Whether the VAE has an area to tile: images and video, not sound."""
    return vae.latent_dim in (2, 3) and getattr(vae, "extra_1d_channel", None) is None


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

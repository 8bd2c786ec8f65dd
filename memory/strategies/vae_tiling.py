"""VAE tiling: decode and encode an image in overlapping tiles that really tile.

diffusers' own tiling keeps the VAE's default tile (1024 pixels on SDXL: nothing happens at 1024),
and cuts narrow strips at the far edges, whose normalisation differs most from the whole image's.
Here the tile follows the size that arrives, and all tiles of an axis have the full size and are
spread evenly: the same number of tiles, a quarter of the largest difference. Every tile goes
through the VAE's own ``decode`` or ``encode``, so that any VAE over images or videos will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import TargetError
from .base import Applied, Method, Outcome, Skipped, Undo, override, undo_all, wrap_method

NAME = "vae tiling"
_FACTORS = ("spatial_compression_ratio", "scale_factor_spatial", "spatial_scale_factor")
_BLOCKS = ("block_out_channels", "encoder_block_out_channels", "ch_mult")


@dataclass(frozen=True)
class VaeTiling:
    """``edge(height, width)`` is the tile's edge in pixels; ``overlap`` a part of it, 0 to 0.5."""

    edge: Callable[[int, int], int]
    overlap: float = 0.25


def spatial_factor(vae: Any) -> int | None:
    """Pixels of an image's edge per latent; ``None`` if the VAE does not say."""
    config = getattr(vae, "config", None)
    for owner in (vae, config):
        for name in _FACTORS:
            value = getattr(owner, name, None)
            if isinstance(value, int) and value > 0:
                return value
    for name in _BLOCKS:
        blocks = getattr(config, name, None)
        if isinstance(blocks, (list, tuple)):
            return int(2 ** (len(blocks) - 1))
    return None


def apply(config: VaeTiling, vae: torch.nn.Module, name: str) -> Outcome:
    """Tile ``vae.decode`` and ``vae.encode``."""
    factor = spatial_factor(vae)
    if factor is None:
        return Skipped(NAME, name, "it does not say how many pixels a latent stands for")
    undos: list[Undo] = []
    if hasattr(vae, "use_tiling"):
        undos.append(override(vae, "use_tiling", False))
    for method, around in (("decode", _decode), ("encode", _encode)):
        if hasattr(vae, method):
            undos.append(wrap_method(vae, method, around(config, factor)))
    detail = f"tiles chosen by the image size, at least {config.overlap:.0%} shared, full at edges"
    return Applied(NAME, name, detail, lambda: undo_all(reversed(undos)))


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of one axis begin: as few as share ``overlap``, evenly spread, none cut short."""
    if tile >= length:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [index * (length - tile) // (count - 1) for index in range(count)]


def weights(length: int, tile: int, begins: list[int], scale: float) -> list[torch.Tensor]:
    """Blending weights of one axis' tiles, in output units; at every point they sum to 1.

    Args:
        scale: output points per unit of ``length`` (a VAE's factor, or its inverse).
    """
    size = round(tile * scale)
    total = torch.zeros(round(length * scale))
    ramps: list[torch.Tensor] = []
    for index, begin in enumerate(begins):
        ramp = torch.ones(size)
        for neighbour, flipped in ((index - 1, False), (index + 1, True)):
            if 0 <= neighbour < len(begins):
                shared = size - round(abs(begins[neighbour] - begin) * scale)
                if shared > 0:
                    rise = (torch.arange(shared) + 0.5) / shared
                    part = slice(size - shared, size) if flipped else slice(0, shared)
                    ramp[part] *= rise.flip(0) if flipped else rise
        first = round(begin * scale)
        total[first : first + size] += ramp
        ramps.append(ramp)
    return [
        ramp / total[round(begin * scale) :][:size]
        for ramp, begin in zip(ramps, begins, strict=True)
    ]


def _decode(config: VaeTiling, factor: int) -> Callable[[Method], Method]:
    def around(original: Method) -> Method:
        def decode(z: Any, *args: Any, **kwargs: Any) -> Any:
            if not _is_image(z) or _has_image(args, kwargs):
                return original(z, *args, **kwargs)
            height, width = z.shape[-2:]
            edge = config.edge(height * factor, width * factor) // factor
            if max(height, width) <= edge:
                return original(z, *args, **kwargs)
            return _in_tiles(z, edge, config.overlap, 1, lambda t: original(t, *args, **kwargs))

        return decode

    return around


def _encode(config: VaeTiling, factor: int) -> Callable[[Method], Method]:
    def around(original: Method) -> Method:
        def encode(x: Any, *args: Any, **kwargs: Any) -> Any:
            if not _is_image(x) or _has_image(args, kwargs):
                return original(x, *args, **kwargs)
            height, width = x.shape[-2:]
            edge = config.edge(height, width) // factor * factor
            if max(height, width) <= edge or height % factor or width % factor:
                return original(x, *args, **kwargs)
            run = lambda t: original(t, *args, **kwargs)  # noqa: E731
            return _in_tiles(x, edge, config.overlap, factor, run)

        return encode

    return around


def _is_image(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim in (4, 5)


def _has_image(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a further image (a mask, say) would have to be cut along: such calls run whole."""
    return any(_is_image(value) for value in (*args, *kwargs.values()))


def _in_tiles(
    whole: torch.Tensor, edge: int, overlap: float, grid: int, run: Callable[[torch.Tensor], Any]
) -> Any:
    """``run`` over every tile of ``whole``, blended; cuts lie on multiples of ``grid``.

    The picture grows in host memory, in float32: on the device it would lie beside every tile.
    """
    tiles = [min(edge, length) for length in whole.shape[-2:]]
    begins = [
        [grid * s for s in starts(length // grid, tile // grid, int(tile * overlap) // grid)]
        for length, tile in zip(whole.shape[-2:], tiles, strict=True)
    ]
    blended: torch.Tensor | None = None
    axes: list[list[torch.Tensor]] = []
    places: list[list[int]] = []
    answer: Any = None
    for row, top in enumerate(begins[0]):
        for column, left in enumerate(begins[1]):
            output = run(whole[..., top : top + tiles[0], left : left + tiles[1]])
            part = tensor_of(output)
            home, dtype = part.device, part.dtype
            part = part.to("cpu", torch.float32)
            answer = with_tensor(output, part)
            del output
            if blended is None:
                scales = [part.shape[axis] / tiles[axis] for axis in (-2, -1)]
                shape = [round(whole.shape[axis] * scales[axis]) for axis in (-2, -1)]
                blended = part.new_zeros((*part.shape[:-2], *shape))
                axes = [
                    [w.to(part) for w in weights(whole.shape[a], tiles[a], begins[a], scales[a])]
                    for a in (-2, -1)
                ]
                places = [[round(b * scales[a]) for b in begins[a]] for a in (-2, -1)]
            high, wide = part.shape[-2:]
            y, x = places[0][row], places[1][column]
            part = part * axes[0][row][:, None] * axes[1][column]
            blended[..., y : y + high, x : x + wide] += part
    assert blended is not None
    return with_tensor(answer, blended.to(dtype).to(home))


def tensor_of(output: Any) -> torch.Tensor:
    """The image, the latents, or the moments of a distribution over latents, in a VAE's answer."""
    value = output if isinstance(output, torch.Tensor) else output[0]
    value = getattr(value, "parameters", value)
    if not isinstance(value, torch.Tensor):
        raise TargetError(
            f"this VAE answers with {type(output).__name__}, which can't be tiled; "
            "set enable_vae_tiling=False"
        )
    return value


def with_tensor(like: Any, blended: Any) -> Any:
    """An answer of the same type as ``like`` around the blended tensor."""
    if isinstance(like, torch.Tensor):
        return blended
    first = like[0]
    if not isinstance(first, torch.Tensor):
        blended = type(first)(blended)
    if isinstance(like, tuple):
        return (blended, *like[1:])
    return type(like)(**{next(iter(like.keys())): blended})

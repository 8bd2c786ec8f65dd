"""The call a diffusers pipeline makes of each kind of component, with empty inputs of its shapes.

Shapes follow the pipelines of diffusers: two samples where a denoiser is guided, latents packed to
tokens for FLUX and Qwen-Image, a prompt padded to what its text encoder takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import TargetError
from ..planner.work import Work

DEVICE = torch.device("cuda:0")
_PACKED = 2
"""Latents per token's edge where latents are packed."""


@dataclass(frozen=True)
class Call:
    """``run`` calls the component on ``inputs``, all of them made for it."""

    inputs: dict[str, Any]
    run: Callable[[], Any]


@dataclass(frozen=True)
class Shapes:
    """What a call's inputs depend on: the run, and the VAE's pixels per latent."""

    work: Work
    factor: int = 8
    frames_factor: int = 4

    @property
    def latent(self) -> tuple[int, int]:
        """Height and width in latents."""
        return self.work.height // self.factor, self.work.width // self.factor

    @property
    def latent_frames(self) -> int:
        """Frames in latents."""
        return (self.work.frames - 1) // self.frames_factor + 1


def call_of(part: Any, shapes: Shapes, dtype: torch.dtype, *, hidden_states: bool = False) -> Call:
    """The call of a denoiser or a text encoder. To be used in the fake mode of its weights.

    Args:
        hidden_states: whether a CLIP is asked for those of every layer.

    Raises:
        TargetError: a class whose call is not known.
    """
    kind = type(part).__name__
    make = _DENOISERS.get(kind)
    if make is not None:
        inputs = make(part.config, shapes, dtype)
        return Call(inputs, lambda: part(**inputs, return_dict=False))
    if hasattr(part, "get_input_embeddings"):
        inputs = {"input_ids": _ids(shapes.work.batch, _words(part, shapes.work))}
        hidden = hidden_states and "CLIP" in kind
        return Call(inputs, lambda: part(**inputs, output_hidden_states=hidden))
    known = ", ".join(sorted(_DENOISERS))
    raise TargetError(
        f"how a pipeline calls a {kind} is not known here; known are {known}, image autoencoders "
        f"and transformers' text encoders"
    )


def decode_of(vae: Any, shapes: Shapes, dtype: torch.dtype) -> Call:
    """The decode of a run's latents."""
    channels = _first(vae.config, "latent_channels", "z_dim")
    latents = _latents(channels, shapes, shapes.work.batch, dtype, _over_time(vae))
    return Call({"z": latents}, lambda: vae.decode(latents, return_dict=False))


def encode_of(vae: Any, shapes: Shapes, dtype: torch.dtype) -> Call:
    """The encode of a run's images."""
    work = shapes.work
    size: tuple[int, ...] = (work.height, work.width)
    if _over_time(vae):
        size = (work.frames, *size)
    pixels = _empty(work.batch, 3, *size, dtype=dtype)
    return Call({"x": pixels}, lambda: vae.encode(pixels, return_dict=False))


def _unet(config: Any, shapes: Shapes, dtype: torch.dtype) -> dict[str, Any]:
    batch, words = shapes.work.samples, shapes.work.words or 77
    context = config.cross_attention_dim
    context = context if isinstance(context, int) else context[0]
    inputs: dict[str, Any] = {
        "sample": _empty(batch, config.in_channels, *shapes.latent, dtype=dtype),
        "timestep": _empty(dtype=torch.float32),
        "encoder_hidden_states": _empty(batch, words, context, dtype=dtype),
    }
    if config.addition_embed_type == "text_time":
        ids = 6
        pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": _empty(batch, pooled, dtype=dtype),
            "time_ids": _empty(batch, ids, dtype=dtype),
        }
    return inputs


def _flux(config: Any, shapes: Shapes, dtype: torch.dtype) -> dict[str, Any]:
    # Its guidance is an input of the model: one sample an image.
    batch, words = shapes.work.batch, shapes.work.words or 512
    height, width = (length // _PACKED for length in shapes.latent)
    inputs = {
        "hidden_states": _empty(batch, height * width, config.in_channels, dtype=dtype),
        "encoder_hidden_states": _empty(batch, words, config.joint_attention_dim, dtype=dtype),
        "pooled_projections": _empty(batch, config.pooled_projection_dim, dtype=dtype),
        "timestep": _empty(batch, dtype=dtype),
        "img_ids": _empty(height * width, 3, dtype=dtype),
        "txt_ids": _empty(words, 3, dtype=dtype),
    }
    if config.guidance_embeds:
        inputs["guidance"] = _empty(batch, dtype=torch.float32)
    return inputs


def _sd3(config: Any, shapes: Shapes, dtype: torch.dtype) -> dict[str, Any]:
    batch, words = shapes.work.samples, shapes.work.words or 333
    return {
        "hidden_states": _empty(batch, config.in_channels, *shapes.latent, dtype=dtype),
        "encoder_hidden_states": _empty(batch, words, config.joint_attention_dim, dtype=dtype),
        "pooled_projections": _empty(batch, config.pooled_projection_dim, dtype=dtype),
        "timestep": _empty(batch, dtype=dtype),
    }


def _pixart(config: Any, shapes: Shapes, dtype: torch.dtype) -> dict[str, Any]:
    batch, words = shapes.work.samples, shapes.work.words or 300
    return {
        "hidden_states": _empty(batch, config.in_channels, *shapes.latent, dtype=dtype),
        "encoder_hidden_states": _empty(batch, words, config.caption_channels, dtype=dtype),
        "encoder_attention_mask": _empty(batch, words, dtype=dtype),
        "timestep": _empty(batch, dtype=dtype),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _wan(config: Any, shapes: Shapes, dtype: torch.dtype) -> dict[str, Any]:
    # Guided in two calls, not in one batch.
    batch, words = shapes.work.batch, shapes.work.words or 512
    return {
        "hidden_states": _latents(config.in_channels, shapes, batch, dtype, True),
        "encoder_hidden_states": _empty(batch, words, config.text_dim, dtype=dtype),
        "timestep": _ids(batch),
    }


def _ltx(config: Any, shapes: Shapes, dtype: torch.dtype) -> dict[str, Any]:
    batch, words = shapes.work.samples, shapes.work.words or 128
    height, width = shapes.latent
    frames = shapes.latent_frames
    tokens = frames * height * width
    return {
        "hidden_states": _empty(batch, tokens, config.in_channels, dtype=dtype),
        "encoder_hidden_states": _empty(batch, words, config.caption_channels, dtype=dtype),
        "encoder_attention_mask": _empty(batch, words, dtype=dtype),
        "timestep": _empty(batch, 1, dtype=dtype),
        "num_frames": frames,
        "height": height,
        "width": width,
    }


_DENOISERS: dict[str, Callable[[Any, Shapes, torch.dtype], dict[str, Any]]] = {
    "UNet2DConditionModel": _unet,
    "FluxTransformer2DModel": _flux,
    "SD3Transformer2DModel": _sd3,
    "PixArtTransformer2DModel": _pixart,
    "WanTransformer3DModel": _wan,
    "LTXVideoTransformer3DModel": _ltx,
}


def _words(encoder: Any, work: Work) -> int:
    """Tokens of a padded prompt: CLIP has a position for each, T5 is given 512."""
    if work.words is not None:
        return work.words
    most = getattr(encoder.config, "max_position_embeddings", None)
    return most if isinstance(most, int) and "T5" not in type(encoder).__name__ else 512


def _over_time(vae: Any) -> bool:
    return any(isinstance(part, torch.nn.Conv3d) for part in vae.modules())


def _latents(
    channels: int, shapes: Shapes, batch: int, dtype: torch.dtype, over_time: bool
) -> torch.Tensor:
    size: tuple[int, ...] = shapes.latent
    if over_time:
        size = (shapes.latent_frames, *size)
    return _empty(batch, channels, *size, dtype=dtype)


def _first(config: Any, *names: str) -> int:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    raise TargetError(f"this autoencoder has none of {', '.join(names)} in its configuration")


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return (
        torch.empty(*shape, dtype=dtype, device=DEVICE)
        if shape
        else torch.empty((), dtype=dtype, device=DEVICE)
    )


def _ids(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.long, device=DEVICE)

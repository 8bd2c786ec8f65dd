"""Image autoencoders: four stages, so one latent is 8 x 8 pixels, as in every real family here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def autoencoder(
    channels: Sequence[int],
    *,
    latents: int = 4,
    sample_size: int = 512,
    groups: int = 32,
    **more: Any,
) -> Any:
    """An ``AutoencoderKL`` with ``channels`` per stage, two layers each."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=list(channels),
        layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        latent_channels=latents,
        norm_num_groups=groups,
        sample_size=sample_size,
        **more,
    )


def full(*, latents: int = 4, sample_size: int = 1024, **more: Any) -> Any:
    """The autoencoder SD1.5, SDXL and FLUX share but for latents and scaling: 84 M parameters."""
    return autoencoder((128, 256, 512, 512), latents=latents, sample_size=sample_size, **more)


def tiny(*, latents: int = 4, **more: Any) -> Any:
    """A small one whose decode still outweighs a small denoiser's activations."""
    return autoencoder((32, 64, 128, 128), latents=latents, sample_size=128, groups=16, **more)

"""Stable Diffusion 1.5: one text encoder, a UNet with cross-attention at every scale."""

from __future__ import annotations

from typing import Any

from . import text, vae
from .tokenizers import clip_tokenizer
from .weights import Maker

SCALING = 0.18215


def tiny(maker: Maker) -> Any:
    """28 MiB in half precision, made for 128 x 128 pixels."""
    return _pipeline(
        maker.make(lambda: text.clip(256, 4)),
        maker.make(
            lambda: _unet(
                sample_size=16,
                block_out_channels=(64, 128, 128),
                layers_per_block=1,
                cross_attention_dim=256,
                attention_head_dim=4,
                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            )
        ),
        maker.make(lambda: vae.tiny(scaling_factor=SCALING)),
    )


def full(maker: Maker) -> Any:
    """The real configuration: UNet 860 M, text encoder 123 M, VAE 84 M parameters."""
    return _pipeline(
        maker.make(text.clip_large),
        maker.make(lambda: _unet(sample_size=64, cross_attention_dim=768, attention_head_dim=8)),
        maker.make(lambda: vae.full(sample_size=512, scaling_factor=SCALING)),
    )


def _unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(in_channels=4, out_channels=4, **config)


def _pipeline(text_encoder: Any, unet: Any, autoencoder: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )

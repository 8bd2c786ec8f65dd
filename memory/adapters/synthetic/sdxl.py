"""SDXL: two text encoders, a UNet whose deepest scale has ten transformer layers."""

from __future__ import annotations

from typing import Any

import torch

from . import text, vae
from .tokenizers import clip_tokenizer
from .weights import Maker

SCALING = 0.13025
_TIME_IDS = 6 * 256  # six micro-conditions of 256 channels join the pooled text embedding


def tiny(maker: Maker) -> Any:
    """42 MiB in half precision, made for 128 x 128 pixels; the VAE upcasts as SDXL's."""
    return _pipeline(
        maker.make(lambda: text.clip(128, 4)),
        maker.make(lambda: text.clip_with_projection(256, 4)),
        maker.make(
            lambda: _unet(
                sample_size=16,
                block_out_channels=(64, 128, 128),
                layers_per_block=1,
                transformer_layers_per_block=(1, 1, 4),
                attention_head_dim=(1, 2, 2),
                cross_attention_dim=128 + 256,
                projection_class_embeddings_input_dim=_TIME_IDS + 256,
            )
        ),
        maker.make(lambda: vae.tiny(scaling_factor=SCALING, force_upcast=True)),
    )


def small(dtype: torch.dtype, seed: int) -> Any:
    """The pipeline the peers were measured on: 145 M parameters, 277 MiB in half precision.

    Weights are the library's own initialisation after one ``manual_seed``, in the order denoiser,
    VAE, text encoders: the order is part of the pipeline, for its images are compared.
    """
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        unet = _unet(
            sample_size=64,
            block_out_channels=(64, 128, 256),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(1, 2, 4),
            cross_attention_dim=640,
            projection_class_embeddings_input_dim=_TIME_IDS + 384,
        )
        autoencoder = vae.autoencoder(
            (32, 64, 128, 128), scaling_factor=SCALING, force_upcast=False
        )
        first = text.clip(256, 8)
        second = text.clip_with_projection(384, 12)
    finally:
        torch.random.set_rng_state(state)
    for module in (unet, autoencoder, first, second):
        # Not the model's own `to`, which warns of parts to keep in float32; there are none here.
        torch.nn.Module.to(module, dtype).eval().requires_grad_(False)
    return _pipeline(first, second, unet, autoencoder)


def full(maker: Maker) -> Any:
    """The real configuration: UNet 2567 M, text encoders 123 M and 695 M, VAE 84 M parameters."""
    return _pipeline(
        maker.make(text.clip_large),
        maker.make(text.clip_big_g),
        maker.make(
            lambda: _unet(
                sample_size=128,
                block_out_channels=(320, 640, 1280),
                layers_per_block=2,
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(5, 10, 20),
                cross_attention_dim=2048,
                projection_class_embeddings_input_dim=_TIME_IDS + 1280,
            )
        ),
        maker.make(lambda: vae.full(scaling_factor=SCALING, force_upcast=True)),
    )


def _unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        **config,
    )


def _pipeline(first: Any, second: Any, unet: Any, autoencoder: Any) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        vae=autoencoder,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    )

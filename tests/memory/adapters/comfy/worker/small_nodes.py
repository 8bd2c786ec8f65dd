"""Nodes of the tests' own: small models, a film's latents, and a node that makes a subgraph."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management as mm
import comfy.ops
import torch
from shapes import UNET
from subjects import conditioning, subject

import nodes

sys.path.append(str(Path(__file__).resolve().parent.parent / "inside"))

SAMPLING: dict[str, Any] = {
    "seed": 1,
    "steps": 2,
    "cfg": 4.0,
    "sampler_name": "euler",
    "scheduler": "normal",
    "denoise": 1.0,
}


class Family:
    """A family's models, as its loader made them."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": ("STRING", {})}}

    def load(self, name: str) -> tuple[Any, ...]:
        one = subject(name)
        return one.model, one.clip, one.vae


class Words(Family):
    """Positive and negative conditioning of a family without a text encoder."""

    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")

    def load(self, name: str) -> tuple[Any, ...]:
        return conditioning(subject(name).shape, None, 1)


class SmallControlNet(Family):
    RETURN_TYPES = ("CONTROL_NET",)

    def load(self, name: str) -> tuple[Any, ...]:
        return (control_net(),)


class VideoVAE(Family):
    RETURN_TYPES = ("VAE",)

    def load(self, name: str) -> tuple[Any, ...]:
        return (video_vae(),)


class VideoLatent:
    """Latents of a film: batch, channels, frames, height, width."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"frames": ("INT", {}), "edge": ("INT", {})}}

    def make(self, frames: int, edge: int) -> tuple[Any, ...]:
        return ({"samples": torch.zeros(1, 4, frames, edge, edge)},)


class Twice:
    """A subgraph of its own: samples, decodes, encodes and samples again."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "expand"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        kinds = {"model": "MODEL", "vae": "VAE", "positive": "CONDITIONING"}
        kinds |= {"negative": "CONDITIONING", "latent_image": "LATENT"}
        return {"required": {name: (kind, {}) for name, kind in kinds.items()}}

    def expand(self, vae: Any, **inputs: Any) -> dict[str, Any]:
        from comfy_execution.graph_utils import GraphBuilder

        graph = GraphBuilder()
        one = graph.node("KSampler", **{**SAMPLING, **inputs})
        image = graph.node("VAEDecode", samples=one.out(0), vae=vae)
        latent = graph.node("VAEEncode", pixels=image.out(0), vae=vae)
        two = {**SAMPLING, **inputs, "latent_image": latent.out(0), "denoise": 0.6}
        return {"result": (graph.node("KSampler", **two).out(0),), "expand": graph.finalize()}


class OtherModel(Family):
    """A model of its own, as another file of the family would be."""

    RETURN_TYPES = ("MODEL",)

    def load(self, name: str) -> tuple[Any, ...]:
        return (another(name),)


class Count:
    """As other packs' nodes that look at an image with a model of theirs, and give a number."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "count"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE", {})}}

    def count(self, image: torch.Tensor) -> tuple[int]:
        return (image.numel(),)


for kind in (Family, Words, OtherModel, Count, SmallControlNet, VideoVAE, VideoLatent, Twice):
    nodes.NODE_CLASS_MAPPINGS[f"Test{kind.__name__}"] = kind


@functools.cache
def another(name: str) -> Any:
    return subject.__wrapped__(name).model


@functools.cache
def control_net() -> Any:
    shape = {key: value for key, value in UNET.items() if key != "out_channels"}
    shape |= {"channel_mult": [1], "num_res_blocks": [1], "transformer_depth": [1]}
    shape |= {"transformer_depth_middle": 1, "num_heads": 8, "context_dim": 768}
    net = comfy.cldm.cldm.ControlNet(
        **shape, hint_channels=3, dtype=torch.float16, operations=comfy.ops.disable_weight_init
    )
    generator = torch.Generator().manual_seed(5)
    for weight in net.parameters():
        weight.requires_grad_(False)
        spread = weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.1
        weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
    return comfy.controlnet.ControlNet(net, load_device=mm.get_torch_device())


@functools.cache
def video_vae() -> Any:
    import vaes

    return vaes.video()

"""Small VAEs as ComfyUI makes them, and what the cases ask of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management as mm
import comfy.model_patcher as mp
import comfy.sd
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.wan.vae import WanVAE
from comfy.taesd.taesd import TAESD
from lowtide.memory.adapters.comfy.vae import VaePlan, tiling
from lowtide.memory.levels import MemoryOptimizationConfig

SHAPE = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3}
SHAPE |= {"ch": 32, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 1, "attn_resolutions": []}
SHAPE |= {"dropout": 0.0}
FACTOR = 8


def make() -> comfy.sd.VAE:
    torch.manual_seed(0)
    weights = AutoencoderKL(ddconfig=SHAPE, embed_dim=4).state_dict()
    vae = comfy.sd.VAE(
        sd=weights, config={"params": {"ddconfig": SHAPE, "embed_dim": 4}}, dtype=torch.float32
    )
    randomise(vae.first_stage_model)
    return vae


def randomise(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)


def natural() -> comfy.sd.VAE:
    """One whose activations stay of order one, as a trained one's do; nothing is clipped."""
    vae = around(copy.deepcopy(VAE.first_stage_model).to("cpu"))
    generator = torch.Generator().manual_seed(0)
    for name, weight in vae.first_stage_model.named_parameters():
        with torch.no_grad():
            if weight.ndim > 1:
                spread = weight[0].numel() ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
            else:
                weight.fill_(float("norm" in name and name.endswith("weight")))
    vae.process_output = lambda image: image
    return vae


def around(model: torch.nn.Module) -> comfy.sd.VAE:
    """A VAE like ``VAE`` around another model."""
    vae = copy.copy(VAE)
    randomise(model)
    vae.first_stage_model = model.eval().float()
    vae.patcher = mp.ModelPatcher(vae.first_stage_model, vae.device, torch.device("cpu"))
    vae.size = None
    return vae


def video() -> comfy.sd.VAE:
    """A small Wan VAE with the ratios and the estimates ComfyUI gives it."""
    settings = {"dim": 8, "z_dim": 4, "num_res_blocks": 1}
    vae = around(WanVAE(temperal_downsample=[False, True, True], **settings))
    vae.latent_dim = 3
    vae.upscale_ratio = (lambda a: max(0, a * 4 - 3), 8, 8)
    vae.upscale_index_formula = (4, 8, 8)
    vae.downscale_ratio = (lambda a: max(0, math.floor((a + 3) / 4)), 8, 8)
    vae.downscale_index_formula = (4, 8, 8)
    # Per frame, as of the VAEs that keep all frames; Wan's own estimate counts none.
    vae.memory_used_decode = lambda shape, dtype: 7000 * shape[2] * shape[3] * shape[4] * 64
    vae.memory_used_encode = lambda shape, dtype: 6000 * shape[2] * shape[3] * shape[4]
    return vae


def tiny() -> comfy.sd.VAE:
    return around(TAESD(latent_channels=4))


def balanced(**more: object) -> MemoryOptimizationConfig:
    return MemoryOptimizationConfig.from_level("balanced", **more)


def small(**more: object) -> MemoryOptimizationConfig:
    """A configuration whose maps wait on the host."""
    return MemoryOptimizationConfig.from_level("aggressive", **more)


DEVICE = mm.get_torch_device()
ACCELERATED = DEVICE.type != "cpu"
VAE = make()
KIND = type(VAE)
LATENT = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1))
IMAGE = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(2))
with torch.inference_mode():
    DECODED = VAE.decode(LATENT)
    ENCODED = VAE.encode(IMAGE)


def smooth(*shape: int) -> torch.Tensor:
    """Noise with structure at every scale, as latents have."""
    generator = torch.Generator().manual_seed(3)
    found = torch.zeros(shape)
    for cells in (2, 4, 8):
        grid = torch.randn(1, math.prod(shape[:-2]), cells, cells, generator=generator)
        grown = torch.nn.functional.interpolate(grid, shape[-2:], mode="bicubic")
        found += grown.reshape(shape)
    return found


class Spied(KIND):
    """Notes what the tiled methods were asked for."""

    asked: list[tuple[str, dict[str, object]]] = []

    def decode_tiled(self, samples, **arguments):
        self.asked.append(("decode", arguments))
        return super().decode_tiled(samples, **arguments)

    def encode_tiled(self, pixel_samples, **arguments):
        self.asked.append(("encode", arguments))
        return super().encode_tiled(pixel_samples, **arguments)


class Noting(KIND):
    """As ``Spied``, and makes black images: for cases that only look at the tiles."""

    def decode_tiled(self, samples, **arguments):
        Spied.asked.append(("decode", arguments))
        return torch.zeros(1, samples.shape[2] * FACTOR, samples.shape[3] * FACTOR, 3)

    def encode_tiled(self, pixel_samples, **arguments):
        Spied.asked.append(("encode", arguments))
        return torch.zeros(1, 4, pixel_samples.shape[1] // FACTOR, pixel_samples.shape[2] // FACTOR)


def spied(
    plan: VaePlan, vae: object = None, kind: type = Spied
) -> tuple[object, list[tuple[str, dict[str, object]]]]:
    vae = copy.copy(VAE if vae is None else vae)
    vae.__class__ = kind
    Spied.asked.clear()
    return tiling(vae, plan), Spied.asked


def plan(**more: object) -> VaePlan:
    return VaePlan(balanced(vae_tile_mode="blended", **more), leave=False)


def exact(**more: object) -> VaePlan:
    return VaePlan(small(**more), leave=False)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def asked_of_core() -> Iterator[list[float]]:
    """The bytes the core is asked to make room for, beside weights."""
    seen: list[float] = []
    load = mm.load_models_gpu

    def noting(models, memory_required=0, **more):
        seen.append(memory_required)
        return load(models, memory_required=memory_required, **more)

    with replaced(mm, "load_models_gpu", noting):
        yield seen


@contextmanager
def free_memory_of(size: int) -> Iterator[None]:
    """The core believes that so much is free on the device, beside what it reserves."""
    size += mm.extra_reserved_memory()

    def found(dev=None, torch_free_too=False):
        return (size, 0) if torch_free_too else size

    with replaced(mm, "get_free_memory", found):
        yield


def peak_of(work: object) -> int:
    """Bytes above what is held, at the peak of ``work()``."""
    module = getattr(torch, DEVICE.type)
    module.reset_peak_memory_stats()
    held = module.memory_allocated()
    with torch.inference_mode():
        work()
    return int(module.max_memory_allocated() - held)

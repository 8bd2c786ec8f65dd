"""Small denoisers of three families, made from ComfyUI's own classes, for the cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import comfy.model_management as mm
import comfy.model_patcher as mp
import comfy.ops
import torch
from comfy.ldm.flux.model import Flux, FluxParams
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

DEVICE = mm.get_torch_device()
CPU = torch.device("cpu")
OPS = comfy.ops.disable_weight_init
WORDS = 64


class Model(torch.nn.Module):
    """What a patcher expects of a model."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        super().__init__()
        self.diffusion_model = denoiser
        self.manual_cast_dtype = None
        self.current_patcher = None
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            value = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.copy_(value if parameter.ndim > 1 else 1 + value)
        for buffer in self.buffers():
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.05)

    def get_dtype(self) -> torch.dtype:
        return self.diffusion_model.dtype

    def memory_required(self, input_shape: object, cond_shapes: object = None) -> int:
        return 0


def unet(dtype: torch.dtype) -> torch.nn.Module:
    return UNetModel(
        image_size=32,
        in_channels=16,
        model_channels=64,
        out_channels=16,
        num_res_blocks=[1, 1],
        channel_mult=(1, 2),
        num_heads=4,
        use_spatial_transformer=True,
        transformer_depth=[1, 1],
        transformer_depth_output=[1, 1, 1, 1],
        transformer_depth_middle=1,
        context_dim=WORDS,
        legacy=False,
        dtype=dtype,
        device=CPU,
        operations=OPS,
    )


def flux(dtype: torch.dtype) -> torch.nn.Module:
    shape = {
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": WORDS,
        "context_in_dim": WORDS,
        "hidden_size": 128,
        "mlp_ratio": 4.0,
        "num_heads": 4,
        "depth": 2,
        "depth_single_blocks": 1,
        "axes_dim": [8, 12, 12],
        "theta": 10_000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": False,
        "txt_ids_dims": [],
    }
    known = {field.name for field in dataclasses.fields(FluxParams)}
    shape = {name: value for name, value in shape.items() if name in known}
    return Flux(image_model="flux", dtype=dtype, device=CPU, operations=OPS, **shape)


def sd3(dtype: torch.dtype) -> torch.nn.Module:
    return OpenAISignatureMMDITWrapper(
        input_size=None,
        pos_embed_scaling_factor=None,
        pos_embed_offset=None,
        pos_embed_max_size=64,
        num_patches=64 * 64,
        patch_size=2,
        in_channels=16,
        depth=2,
        adm_in_channels=WORDS,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": WORDS, "out_features": 128},
        },
        dtype=dtype,
        device=CPU,
        operations=OPS,
    )


FAMILIES: dict[str, Callable[[torch.dtype], torch.nn.Module]] = {
    "unet": unet,
    "flux": flux,
    "sd3": sd3,
}
EDGES = {"unet": 32, "flux": 64, "sd3": 64}
"""Latents' edges that give 1024 tokens of the image in each family."""


def patcher(family: str, dtype: torch.dtype = torch.float32) -> mp.ModelPatcher:
    return mp.ModelPatcher(Model(FAMILIES[family](dtype)), DEVICE, CPU)


def forward(one: mp.ModelPatcher, family: str, batch: int = 2) -> torch.Tensor:
    """One step of a loaded model, with the options of the patcher."""
    generator = torch.Generator().manual_seed(3)
    model = one.model.diffusion_model
    edge = EDGES[family]

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, model.dtype)

    x, words, y = noise(batch, 16, edge, edge), noise(batch, 77, WORDS), noise(batch, WORDS)
    steps = torch.full((batch,), 0.5).to(DEVICE, model.dtype)
    more = {} if family == "unet" else {"y": y}
    options = dict(one.model_options["transformer_options"])
    with torch.inference_mode():
        return model(x, steps, context=words, transformer_options=options, **more).float().cpu()


def load(one: mp.ModelPatcher) -> None:
    mm.load_models_gpu([one], memory_required=0)


def run(one: mp.ModelPatcher, family: str, batch: int = 2) -> torch.Tensor:
    load(one)
    return forward(one, family, batch)


def unload() -> None:
    """Take everything off the device, whether or not ComfyUI thinks it is worth it."""
    while mm.current_loaded_models:
        mm.current_loaded_models.pop().model_unload()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative L2."""
    return ((one - other).norm() / other.norm()).item()


def peak_of(work: Callable[[], object]) -> int:
    """Most bytes allocated beside what is there before; on the simulated accelerator."""
    from lowtide_sim import current

    accelerator = current()
    held = accelerator.allocated
    accelerator.reset_peaks()
    work()
    return accelerator.peak_allocated - held

"""Cases: what FP8 storage loses on denoisers of ComfyUI's own classes, with random weights."""

from __future__ import annotations

import time

import comfy.ldm.flux.model as flux
import comfy.ldm.modules.diffusionmodules.openaimodel as unet
import comfy.model_patcher as mp
import comfy.ops
import torch
from lowtide.memory import float8 as codec
from lowtide.memory.adapters.comfy import float8
from lowtide.memory.adapters.comfy.float8_layer import Float8Layer
from lowtide.memory.levels import MemoryOptimizationConfig
from small import CPU, DEVICE, load, unload

KINDS = {"dtype": torch.float32, "device": CPU, "operations": comfy.ops.disable_weight_init}


class Model(torch.nn.Module):
    """What a patcher expects, around a denoiser."""

    manual_cast_dtype = None

    def __init__(self, denoiser: torch.nn.Module) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, weight in denoiser.named_parameters():
            weight.requires_grad_(False)
            if name.endswith("bias"):
                weight.zero_()
            elif weight.ndim < 2:
                weight.fill_(1)
            else:
                weight.normal_(0, (weight.numel() / weight.shape[0]) ** -0.5, generator=generator)
        self.diffusion_model = denoiser.eval()
        self.current_patcher = None


def losses(denoiser: torch.nn.Module, *inputs: torch.Tensor, **more: torch.Tensor) -> None:
    one = mp.ModelPatcher(Model(denoiser), DEVICE, CPU)

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return denoiser(*inputs, **more).clone()

    exact = forward()
    start = time.perf_counter()
    config = MemoryOptimizationConfig(fp8_storage=True)
    clone = float8.store(one, config, [])
    seconds = time.perf_counter() - start
    size = one.model_size()
    load(clone)
    stored = codec.relative_error(forward(), exact)
    coded = [name for name, part in denoiser.named_modules() if isinstance(part, Float8Layer)]
    unload()
    assert torch.equal(forward(), exact), "not restored"
    weights = {name: denoiser.get_submodule(name).weight for name in coded}
    for weight in weights.values():
        weight.data = weight.data.to(codec.CODES).float()
    cast = codec.relative_error(forward(), exact)
    print(
        f"{type(denoiser).__name__}: {len(coded)} layers, {size / 1e6:.0f} MB as "
        f"{clone.model_size() / 1e6:.0f} MB in {seconds:.1f} s, "
        f"cast {cast:.2%}, stored {stored:.2%}"
    )
    assert 0 < stored < min(cast / 2, 0.02), (stored, cast)
    assert clone.model_size() < 0.4 * size


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def case_sd15() -> None:
    model = unet.UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        num_res_blocks=[1, 1],
        channel_mult=[1, 2],
        transformer_depth=[1, 0],
        transformer_depth_output=[1, 1, 0, 0],
        transformer_depth_middle=1,
        num_heads=8,
        use_spatial_transformer=True,
        context_dim=768,
        legacy=False,
        **KINDS,
    )
    losses(model, noise(1, 4, 16, 16), torch.tensor([500.0]), context=noise(1, 24, 768))


def case_sdxl() -> None:
    model = unet.UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        num_res_blocks=[1, 1],
        channel_mult=[1, 2],
        transformer_depth=[0, 2],
        transformer_depth_output=[0, 0, 2, 2],
        transformer_depth_middle=2,
        num_head_channels=64,
        use_spatial_transformer=True,
        use_linear_in_transformer=True,
        context_dim=1024,
        num_classes="sequential",
        adm_in_channels=2816,
        legacy=False,
        **KINDS,
    )
    inputs = noise(1, 4, 16, 16), torch.tensor([500.0])
    losses(model, *inputs, context=noise(1, 24, 1024), y=noise(1, 2816))


def case_flux() -> None:
    later = {"txt_ids_dims": [], "global_modulation": False}
    known = flux.FluxParams.__dataclass_fields__
    model = flux.Flux(
        image_model="flux",
        in_channels=16,
        out_channels=16,
        vec_in_dim=768,
        context_in_dim=1024,
        hidden_size=1024,
        mlp_ratio=4.0,
        num_heads=8,
        depth=2,
        depth_single_blocks=4,
        axes_dim=[16, 56, 56],
        theta=10_000,
        patch_size=2,
        qkv_bias=True,
        guidance_embed=True,
        **{name: value for name, value in later.items() if name in known},
        **KINDS,
    )
    inputs = noise(1, 16, 16, 16), torch.tensor([0.5]), noise(1, 24, 1024)
    losses(model, *inputs, y=noise(1, 768), guidance=torch.tensor([3.5]))

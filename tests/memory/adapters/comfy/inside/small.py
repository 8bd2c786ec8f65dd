"""Small models as ComfyUI makes them, for the cases."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.model_patcher as mp
import comfy.ops
import torch

DEVICE = mm.get_torch_device()
CPU = torch.device("cpu")
WIDTH = 256
LAYERS = 8
KEYS = [f"diffusion_model.blocks.{index}.weight" for index in range(LAYERS)]


class Net(torch.nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        ops = comfy.ops.disable_weight_init
        self.dtype = dtype
        self.blocks = torch.nn.ModuleList(
            [ops.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(LAYERS)]
        )
        self.norm = ops.LayerNorm(WIDTH, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + torch.nn.functional.silu(block(x)) * 0.1
        return self.norm(x)


class Model(torch.nn.Module):
    """What a patcher expects of a model, and one estimate of activations."""

    activations = 0

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.diffusion_model = Net(dtype)
        self.manual_cast_dtype = None
        self.current_patcher = None
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            torch.nn.init.normal_(parameter, std=0.05)

    def get_dtype(self) -> torch.dtype:
        return self.diffusion_model.dtype

    def memory_required(self, input_shape: object, cond_shapes: object = None) -> int:
        return self.activations

    def extra_conds_shapes(self, **conds: object) -> dict[str, object]:
        return {}


def patcher() -> mp.ModelPatcher:
    return mp.ModelPatcher(Model(), DEVICE, CPU)


def weights(one: mp.ModelPatcher) -> dict[str, torch.Tensor]:
    return {key: value.to("cpu", copy=True) for key, value in one.model.state_dict().items()}


def restored(one: mp.ModelPatcher, before: dict[str, torch.Tensor]) -> bool:
    now = one.model.state_dict()
    return all(torch.equal(before[key], now[key].cpu()) for key in before)


def lora(one: mp.ModelPatcher) -> mp.ModelPatcher:
    """A clone with a change of every block's weight."""
    delta = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)) * 0.02
    clone = one.clone()
    clone.add_patches(dict.fromkeys(KEYS, ("diff", (delta,))), 1.0)
    return clone


def load(one: mp.ModelPatcher) -> None:
    mm.load_models_gpu([one], memory_required=0)


def run(one: mp.ModelPatcher) -> torch.Tensor:
    load(one)
    return forward(one)


def forward(one: mp.ModelPatcher) -> torch.Tensor:
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return one.model.diffusion_model(x.to(DEVICE)).cpu()


def unload() -> None:
    """Take everything off the device, whether or not ComfyUI thinks it is worth it."""
    while mm.current_loaded_models:
        mm.current_loaded_models.pop().model_unload()


def close(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()

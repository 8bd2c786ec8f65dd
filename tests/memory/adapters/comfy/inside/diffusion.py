"""A small random diffusion model of the SD1.5 family, with LoRAs and a sampler, for the cases."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.ops
import comfy.sample
import comfy.sd
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

STEPS = 3
TOKENS = 77
# What ComfyUI's detection takes for SD1.5: 320 channels, a context of 768, convolutions as proj.
SHAPE = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "legacy": False,
}


def weights_of(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    net = UNetModel(**SHAPE, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, weight in net.state_dict().items():
        if weight.dim() > 1:
            value = torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5
        else:
            value = torch.full(weight.shape, float(name.endswith("weight")))
        found[name] = value.to(dtype)
    return found


def make(dtype: torch.dtype = torch.float16, compute: torch.dtype | None = None) -> object:
    """The model's patcher; stored in ``dtype``, computed in ``compute`` if that is given."""
    patcher = comfy.sd.load_diffusion_model_state_dict(weights_of(dtype))
    if compute is not None:
        patcher.model.manual_cast_dtype = compute
    return patcher


def keys(patcher: object) -> list[str]:
    found = patcher.model.state_dict()
    wanted = ("to_q.weight", "to_k.weight", "proj_in.weight", "out_layers.3.weight", "proj.weight")
    return [name for name in found if name.endswith(wanted)]


def with_loras(patcher: object, count: int, seed: int = 1) -> object:
    """A clone with ``count`` LoRAs of rank 4, as ComfyUI's loader adds them."""
    import comfy.weight_adapter

    clone = patcher.clone()
    state = patcher.model.state_dict()
    for index in range(count):
        generator = torch.Generator().manual_seed(seed + index)
        patches = {}
        for key in keys(patcher):
            shape = state[key].shape
            up = torch.randn(shape[0], 4, generator=generator)
            down = torch.randn(4, state[key][0].numel(), generator=generator) * 0.01
            if len(shape) == 4:
                down = down.reshape(4, *shape[1:])
                up = up.reshape(*up.shape, 1, 1)
            weights = (up, down, 4.0, None, None, None)
            adapter = comfy.weight_adapter.LoRAAdapter
            patches[key] = adapter(set(), weights)
        assert len(clone.add_patches(patches, 0.7)) == len(patches)
    return clone


def cond(seed: int, tokens: int = TOKENS) -> list[list[object]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, tokens, 768, generator=generator), {}]]


def sample(
    patcher: object,
    *,
    size: int = 16,
    seed: int = 0,
    steps: int = STEPS,
    cfg: float = 7.0,
    positive: object = None,
    negative: object = None,
) -> torch.Tensor:
    """Latents sampled with ``patcher``; ``size`` in latents."""
    latent = torch.zeros(1, 4, size, size)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return comfy.sample.sample(
            patcher,
            noise,
            steps,
            cfg,
            "euler",
            "normal",
            cond(1) if positive is None else positive,
            cond(2) if negative is None else negative,
            latent,
            seed=seed,
        ).cpu()


def unload() -> None:
    while mm.current_loaded_models:
        mm.current_loaded_models.pop().model_unload()
    mm.soft_empty_cache()

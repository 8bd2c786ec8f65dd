"""Builds one family's files with random weights; run by ComfyUI's own interpreter.

    python build.py COMFYUI SHAPE FOLDER

``model.safetensors`` is a checkpoint with everything where the family has text encoders, else the
diffusion model alone, and ``vae.safetensors`` its VAE. ``lora-1`` to ``lora-5`` differ in kind:
attention, all kinds of linear layers, convolutions, whole differences with biases, and DoRA. Each
changes a part of its layers only: applying LoRAs is most of what the tests wait for. Weights are
scaled by fan-in so that activations stay of order one.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

comfyui, shape_name, folder = sys.argv[1:4]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.flux.model  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.sdxl_clip  # noqa: E402
import comfy.supported_models  # noqa: E402
import shapes  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.taesd.taesd import TAESD  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

Weights = dict[str, torch.Tensor]

SHAPE = shapes.SHAPES[shape_name]
DTYPE = getattr(torch, SHAPE.storage)
RANK = 4
_BUILT = {"dtype": torch.float32, "operations": comfy.ops.disable_weight_init}


def diffusion_model() -> torch.nn.Module:
    if "image_model" not in SHAPE.model:
        return UNetModel(**SHAPE.model, **_BUILT)
    params = inspect.signature(comfy.ldm.flux.model.FluxParams).parameters
    newer = {"txt_ids_dims": []} if "txt_ids_dims" in params else {}
    return comfy.ldm.flux.model.Flux(**SHAPE.model, **newer, **_BUILT)


def vae() -> torch.nn.Module:
    if SHAPE.vae is None:
        return TAESD(latent_channels=SHAPE.channels)
    return AutoencoderKL(ddconfig=SHAPE.vae, embed_dim=SHAPE.channels)


def text_encoders() -> Weights:
    if not SHAPE.encoders:
        return {}
    kind = (
        comfy.sdxl_clip.SDXLClipModel
        if "clip_g_model_config" in SHAPE.encoders
        else comfy.sd1_clip.SD1ClipModel
    )
    made = kind(device="cpu", dtype=torch.float32, model_options=SHAPE.encoders).state_dict()
    return {key: cut(value) for key, value in made.items() if ".transformer." in key}


def cut(weight: torch.Tensor) -> torch.Tensor:
    """The embedding of tokens at its small size."""
    return weight[: shapes.VOCABULARY] if weight.shape[0] == 49408 else weight


def randomise(weights: Weights, seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    out: Weights = {}
    for key, weight in weights.items():
        if weight.dim() >= 2:
            spread = weight[0].numel() ** -0.5
            if "decoder" in key and weight.shape[0] == 3:
                spread *= 0.2  # or half of the pixels would be clipped, and equal for that alone
            value = torch.randn(weight.shape, generator=generator) * spread
        elif key.endswith(("bias", "shift")):
            middle = 0.5 if "taesd_decoder" in key and weight.shape[:1] == (3,) else 0.0
            value = torch.full(weight.shape, middle)
            if not middle:
                value += torch.randn(weight.shape, generator=generator) * 0.02
        else:
            value = torch.ones(weight.shape)
        out[key] = value.to(DTYPE).contiguous()
    return out


def lora_names(model: Weights, encoders: Weights) -> dict[str, torch.Tensor]:
    """What LoRA files call each weight that ComfyUI lets them change."""
    found = {
        "lora_unet_" + key.removesuffix(".weight").replace(".", "_"): value
        for key, value in model.items()
        if key.endswith(".weight")
    }
    names = {"clip_l": "lora_te1_" if "clip_g_model_config" in SHAPE.encoders else "lora_te_"}
    names["clip_g"] = "lora_te2_"
    for key, value in encoders.items():
        encoder, _, layer = key.partition(".transformer.")
        if layer.startswith("text_model.encoder.") and layer.endswith(".weight"):
            name = layer.removesuffix(".weight").replace(".", "_")
            found[names[encoder] + name] = value
    return found


def low_rank(name: str, weight: torch.Tensor, rank: int, generator: torch.Generator) -> Weights:
    rows, rest = weight.shape[0], weight.shape[1:]
    up = torch.randn(rows, rank, *[1] * len(rest[1:]), generator=generator) * 0.3
    down = torch.randn(rank, *rest, generator=generator) * weight[0].numel() ** -0.5
    return {
        f"{name}.lora_up.weight": up.half(),
        f"{name}.lora_down.weight": down.half(),
        f"{name}.alpha": torch.tensor(float(rank) / 2),
    }


def lora(kind: int, named: dict[str, torch.Tensor]) -> Weights:
    generator = torch.Generator().manual_seed(70 + kind)
    matrices = {name: weight for name, weight in named.items() if weight.dim() == 2}
    attention = {name: w for name, w in matrices.items() if "attn" in name}
    out: Weights = {}
    if kind == 1:
        for name, weight in list(attention.items())[::2]:
            out |= low_rank(name, weight, RANK, generator)
    elif kind == 2:
        for name, weight in list(matrices.items())[::3]:
            out |= low_rank(name, weight, 2 * RANK, generator)
    elif kind == 3:
        spatial = {name: weight for name, weight in named.items() if weight.dim() == 4}
        for name, weight in list((spatial or matrices).items())[::2]:
            out |= low_rank(name, weight, RANK, generator)
    elif kind == 4:
        biased = [name for name in attention if name.endswith(("_to_out_0", "_qkv"))]
        for name in dict.fromkeys([*list(attention)[::6], *biased[::3]]):
            weight = attention[name]
            delta = torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5
            out[f"{name}.diff"] = (delta * 0.2).half()
            if name in biased:
                bias = torch.randn(weight.shape[0], generator=generator) * 0.05
                out[f"{name}.diff_b"] = bias.half()
    else:
        for name, weight in list(matrices.items())[1::5]:
            out |= low_rank(name, weight, RANK, generator)
            scale = 1 + torch.rand(weight.shape[0], 1, generator=generator) * 0.2
            out[f"{name}.dora_scale"] = (weight.float().norm(dim=1, keepdim=True) * scale).half()
    return out


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def encoders_in_a_checkpoint(encoders: Weights) -> Weights:
    if "clip_g_model_config" in SHAPE.encoders:
        known = comfy.supported_models.SDXL
        return known.process_clip_state_dict_for_saving(known(dict(known.unet_config)), encoders)
    return {key.replace("clip_l.", "cond_stage_model.", 1): w for key, w in encoders.items()}


out = Path(folder)
model = {
    # FLUX's files have kept the name that the newer ComfyUI's own class has not.
    key.replace("_norm.weight", "_norm.scale") if "image_model" in SHAPE.model else key: weight
    for key, weight in randomise(diffusion_model().state_dict(), 1).items()
}
autoencoder = randomise(vae().state_dict(), 2)
encoders = randomise(text_encoders(), 3)
if encoders:
    checkpoint = {
        **prefixed("model.diffusion_model.", model),
        **encoders_in_a_checkpoint(encoders),
    }
    if SHAPE.vae is None:
        checkpoint |= prefixed("first_stage_model.", autoencoder)
    save_file({key: w.contiguous() for key, w in checkpoint.items()}, out / "model.safetensors")
else:
    save_file(model, out / "model.safetensors")
save_file(autoencoder, out / "vae.safetensors")
named = lora_names(model, encoders)
for kind in range(1, shapes.LORAS + 1):
    save_file(lora(kind, named), out / f"lora-{kind}.safetensors")

"""Builds a random SD1.5-family checkpoint and a LoRA for it; run by ComfyUI's own interpreter.

    python build_checkpoint.py COMFYUI RECIPE CHECKPOINT LORA

ComfyUI's classes give the keys and shapes, so that its loader takes the file as a real one; its
detection wants 320 channels, a context of 768 and ``proj_in`` as a convolution, all the rest may
shrink. Weights are seeded, and scaled by fan-in so that activations stay of order one; the
decoder's last convolution is weaker and centred, or half of the pixels would be clipped, and equal
for that reason alone.
"""

from __future__ import annotations

import sys

comfyui, recipe, checkpoint_path, lora_path = sys.argv[1:5]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ops  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.taesd.taesd import TAESD  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

# Levels of the UNet, and the VAE: TAESD decodes in well under a second, the full one tiles visibly.
RECIPES = {
    "small": ([1], "taesd"),
    "small-kl": ([1], "kl"),
    "wide": ([1, 2], "taesd"),
    "full": ([1, 2], "kl"),
}
RANK = 4


def unet(channel_mult: list[int]) -> torch.nn.Module:
    levels = len(channel_mult)
    return UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        channel_mult=channel_mult,
        num_res_blocks=[1] * levels,
        transformer_depth=[1] * levels,
        transformer_depth_output=[1] * (2 * levels),
        transformer_depth_middle=1,
        num_heads=8,
        num_head_channels=-1,
        use_spatial_transformer=True,
        context_dim=768,
        use_linear_in_transformer=False,
        legacy=False,
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )


def vae(kind: str) -> torch.nn.Module:
    if kind == "taesd":
        return TAESD(latent_channels=4)
    shape = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3}
    shape.update(ch=128, ch_mult=[1, 2, 4, 4], num_res_blocks=2, attn_resolutions=[], dropout=0.0)
    return AutoencoderKL(ddconfig=shape, embed_dim=4)


def randomise(weights: dict[str, torch.Tensor], prefix: str, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    out: dict[str, torch.Tensor] = {}
    for key, weight in weights.items():
        if weight.dim() >= 2:
            spread = weight[0].numel() ** -0.5
            if "decoder" in key and weight.shape[0] == 3:
                spread *= 0.2
            value = torch.randn(weight.shape, generator=generator) * spread
        elif key.endswith(("bias", "shift")):
            # TAESD's decoder gives 0..1, the full one -1..1.
            middle = 0.5 if "taesd_decoder" in key and weight.shape[:1] == (3,) else 0.0
            value = torch.full(weight.shape, middle)
        else:
            value = torch.ones(weight.shape)
        out[prefix + key] = value.half().contiguous()
    return out


def lora(checkpoint: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rank-4 changes of every attention projection of the UNet and of the text encoder."""
    generator = torch.Generator().manual_seed(77)
    names = {"model.diffusion_model.": "lora_unet_", "cond_stage_model.transformer.": "lora_te_"}
    out: dict[str, torch.Tensor] = {}
    for key, weight in checkpoint.items():
        prefix = next((p for p in names if key.startswith(p)), None)
        layer = key.removesuffix(".weight")
        attends = ("attn1.", "attn2.", "self_attn.")
        if prefix is None or weight.dim() != 2 or not any(part in layer for part in attends):
            continue
        name = names[prefix] + layer.removeprefix(prefix).replace(".", "_")
        rows, columns = weight.shape
        out[f"{name}.lora_up.weight"] = torch.randn(rows, RANK, generator=generator).half() * 0.5
        down = torch.randn(RANK, columns, generator=generator) * columns**-0.5
        out[f"{name}.lora_down.weight"] = down.half()
        out[f"{name}.alpha"] = torch.tensor(float(RANK))
    return out


channel_mult, vae_kind = RECIPES[recipe]
clip = comfy.sd1_clip.SD1ClipModel(device="cpu", dtype=torch.float32).state_dict()
clip = {
    k.removeprefix("clip_l."): v for k, v in clip.items() if k.startswith("clip_l.transformer.")
}
checkpoint = {
    **randomise(unet(channel_mult).state_dict(), "model.diffusion_model.", 1),
    **randomise(vae(vae_kind).state_dict(), "first_stage_model.", 2),
    **randomise(clip, "cond_stage_model.", 3),
}
save_file(checkpoint, checkpoint_path)
save_file(lora(checkpoint), lora_path)

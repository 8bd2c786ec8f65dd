"""The conditions ComfyUI's sampler would hand a model, of a run's shapes and without values."""

from __future__ import annotations

from typing import Any

import torch

from ...planner.work import Work

_CONTEXTS = ("context_dim", "context_in_dim", "text_dim", "cap_feat_dim", "caption_channels",
             "crossattn_emb_channels", "joint_attention_dim")  # fmt: skip
_WORDS = {"flux": 256, "wan2.1": 512, "sd3": 154}
_USUAL_WORDS = 77
_USUAL_CONTEXT = 4096
_DEVICE = "cuda:0"
_HOST = "cpu"
"""Where encoded prompts wait, until a step takes them to the device."""


def conditions(
    model: Any, noise: torch.Tensor, shapes: tuple[tuple[int, ...], ...], count: int, work: Work
) -> dict[str, Any]:
    """Keyword arguments of ``model.apply_model``, of ``count`` conditions in one batch.

    Args:
        model: a ``BaseModel`` of fakes. To be called in their mode.
        shapes: of a prompt's embeddings and pooled embeddings; empty where no text encoder is
            known: then those the model's configuration asks for.
    """
    embeddings, pooled = _prompt(model, shapes, work.words)
    given = model.extra_conds(
        noise=noise,
        device=torch.device(_DEVICE),
        cross_attn=embeddings,
        pooled_output=pooled,
        width=work.width,
        height=work.height,
        prompt_type="positive",
        guidance=3.5,
        seed=0,
        denoise_mask=None,
        latent_image=noise,
    )
    found: dict[str, Any] = {}
    for name, condition in given.items():
        one = condition.process_cond(batch_size=noise.shape[0], area=None, device=_DEVICE)
        value = one.concat([one] * (count - 1)) if count > 1 else one.cond
        found[name] = value
    found["transformer_options"] = {
        "cond_or_uncond": list(range(count)),
        "sample_sigmas": None,
        "optimized_attention_override": _fused,
    }
    return found


def _fused(_attention: Any, *args: Any, **kwargs: Any) -> Any:
    """Torch's own attention in the place of whatever this ComfyUI computes with: others ask the
    device for free memory, or call kernels that know no fakes. A plain function, see ``attention``.
    """
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)


def _prompt(model: Any, shapes: tuple[tuple[int, ...], ...], words: int | None) -> tuple[Any, Any]:
    config = getattr(model.model_config, "unet_config", {})
    if shapes:
        embeddings = torch.empty(shapes[0], device=_HOST)
        wide = shapes[1] if len(shapes) > 1 else ()
        return embeddings, torch.empty(wide, device=_HOST) if wide else None
    channels = next((config[key] for key in _CONTEXTS if config.get(key)), _USUAL_CONTEXT)
    words = words or _WORDS.get(str(config.get("image_model")), _USUAL_WORDS)
    pooled = config.get("vec_in_dim") or (1280 if config.get("adm_in_channels") else 768)
    return (
        torch.empty((1, words, channels), device=_HOST),
        torch.empty((1, pooled), device=_HOST),
    )

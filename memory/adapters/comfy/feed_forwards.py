"""Which of a model's modules are feed-forward blocks that work on each token by itself.

Known by ComfyUI's classes, listed by the module that defines them, and by structure: a block's
``mlp`` that is a sequence of linear layers and activations cannot mix tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

_LDM = "comfy.ldm."
_CLASSES = {
    "modules.attention": ("FeedForward",),
    "modules.diffusionmodules.mmdit": ("Mlp", "SwiGLUFeedForward"),
    "ace.ace_step15": ("MLP",),
    "audio.dit": ("FeedForward",),
    "aura.mmdit": ("MLP",),
    "cosmos.blocks": ("FeedForward",),
    "cosmos.predict2": ("GPT2FeedForward",),
    "ernie.model": ("ErnieImageFeedForward",),
    "flux.layers": ("YakMLP",),
    "genmo.joint_model.layers": ("FeedForward",),
    "hidream.model": ("FeedForwardSwiGLU", "MOEFeedForwardSwiGLU"),
    "hunyuan3dv2_1.hunyuandit": ("FeedForward", "MLP"),
    "joyimage.model": ("JoyImageFeedForward",),
    "kandinsky5.model": ("FeedForward",),
    "krea2.model": ("SwiGLU",),
    "lens.model": ("GateMLP",),
    "lightricks.model": ("FeedForward",),
    "lumina.model": ("FeedForward",),
    "minimax.model": ("MLP",),
    "minimax_music.dit": ("FeedForward",),
    "omnigen.omnigen2": ("LuminaFeedForward",),
    "qwen_image.model": ("FeedForward",),
    "seedvr.model": ("MLP", "SwiGLUMLP"),
    "triposplat.model": ("MLP",),
}
"""Modules under ``comfy.ldm`` and their feed-forward classes; a class an older core lacks is of
no matter. Feed-forward layers with convolutions over the tokens (ACE-Step 1's) are left out."""
_NAMES = frozenset({"ff", "ffn", "img_mlp", "mlp", "txt_mlp"})
_KNOWN = frozenset((_LDM + place, name) for place, names in _CLASSES.items() for name in names)
_POINTWISE = (
    torch.nn.GELU,
    torch.nn.SiLU,
    torch.nn.ReLU,
    torch.nn.Identity,
    torch.nn.Dropout,
)
_POINTWISE_NAMES = frozenset({"SiLUActivation"})
_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def feed_forwards(model: Any) -> Iterator[tuple[str, Any]]:
    """The feed-forward blocks of a model and their paths, outermost only."""
    inside: list[str] = []
    for path, module in model.named_modules():
        if inside and path.startswith(inside[-1]):
            continue
        if _is_feed_forward(path.rpartition(".")[2], module):
            inside.append(f"{path}.")
            yield path, module


def fused_blocks(model: Any) -> int:
    """Blocks whose feed-forward shares its layers with the attention, as FLUX's single ones."""
    fused = ("linear1", "linear2", "mlp_hidden_dim")
    return sum(all(hasattr(module, name) for name in fused) for module in model.modules())


def _is_feed_forward(name: str, module: Any) -> bool:
    known = any((kind.__module__, kind.__name__) in _KNOWN for kind in type(module).__mro__)
    if not known and not (name in _NAMES and _is_tokenwise_sequence(module)):
        return False
    if any(True for _ in module.parameters(recurse=False)):
        return False
    return not any(isinstance(part, _CONVOLUTIONS) for part in module.modules())


def _is_tokenwise_sequence(module: Any) -> bool:
    """Whether it widens each token, and narrows it again: embedders of one vector do not."""
    if not isinstance(module, torch.nn.Sequential):
        return False
    linears = [part for part in module if isinstance(part, torch.nn.Linear)]
    others = [part for part in module if not isinstance(part, torch.nn.Linear)]
    if any(
        not isinstance(part, _POINTWISE) and type(part).__name__ not in _POINTWISE_NAMES
        for part in others
    ):
        return False
    return (
        len(linears) > 1
        and linears[0].in_features == linears[-1].out_features
        and linears[0].out_features > linears[0].in_features
    )

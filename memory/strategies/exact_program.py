"""What an autoencoder's encoder or decoder computes, as steps that can run strip by strip.

Read from the modules: the image autoencoders of diffusers and ComfyUI (SD1.5, SDXL, SD3, FLUX) are
made of the few kinds of layer below. A module with anything else in it has no program, nor has one
that somebody changed: with hooks, a forward or an attention processor of its own, or adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

_Module: TypeAlias = torch.nn.Module


@dataclass(frozen=True)
class Layer:
    """GroupNorm and SiLU (if there is a norm), doubling by nearest neighbours, a convolution.

    ``padding`` is of the convolution's input, zeros: left, right, top, bottom.
    """

    conv: Any
    norm: Any = None
    doubled: bool = False
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class Block:
    """(``second(first(x)) + shortcut(x)) / scale``; without a shortcut x itself is added."""

    first: Layer
    second: Layer
    shortcut: Any = None
    scale: float = 1.0


@dataclass(frozen=True)
class Attention:
    """Self-attention over the whole map, added to its input; the sum is divided by ``scale``."""

    norm: Any
    query: Any
    key: Any
    value: Any
    out: Any
    heads: int = 1
    scale: float = 1.0


Step: TypeAlias = Layer | Block | Attention


_OWN = __name__.rpartition(".strategies.")[0]
"""Prefix of our own modules, whose hooks measure and change nothing."""

_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor")
"""diffusers' processors that compute plain self-attention."""


class _Unknown(Exception):
    """A layer of another kind."""


def program_of(root: _Module | None) -> tuple[Step, ...] | None:
    """The steps of an encoder or a decoder; ``None`` if any of its layers is of another kind."""
    if root is None:
        return None
    family = type(root).__module__.partition(".")[0]
    try:
        for module in root.modules():
            _expect(module is root or _untouched(module))
        if family == "diffusers":
            return tuple(_diffusers(root))
        if family == "comfy":
            return tuple(_comfy(root))
    except (_Unknown, AttributeError):
        return None
    return None


def _untouched(module: _Module) -> bool:
    """Whether a call of the module does what its class says; offload hooks on layers may be there.

    A container's hooks would never run here: offloading by blocks is a change.
    """
    own = vars(module)
    hooked = "_hf_hook" in own or _has_hooks(own.get("_diffusers_hook"))
    if "_conv_forward" in own or (hooked and any(True for _ in module.children())):
        return False
    if "forward" in own and not hooked and "_diffusers_hook" not in own:
        return False
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return all(getattr(hook, "__module__", "").startswith(_OWN) for hook in hooks)


def _has_hooks(registry: Any) -> bool:
    return bool(getattr(registry, "hooks", None))


def _diffusers(root: Any) -> Iterator[Step]:
    kind = type(root).__name__
    _expect(kind in ("Encoder", "Decoder"))
    yield _layer(root.conv_in)
    if kind == "Encoder":
        for block in root.down_blocks:
            _expect(type(block).__name__ == "DownEncoderBlock2D")
            yield from map(_resnet, block.resnets)
            for sampler in block.downsamplers or ():
                _expect(type(sampler).__name__ == "Downsample2D" and sampler.norm is None)
                yield _layer(sampler.conv, padding=_after(sampler.padding))
    middle = root.mid_block
    _expect(type(middle).__name__ == "UNetMidBlock2D")
    yield _resnet(middle.resnets[0])
    for attention, resnet in zip(middle.attentions, list(middle.resnets)[1:], strict=True):
        if attention is not None:
            yield _attention(attention)
        yield _resnet(resnet)
    if kind == "Decoder":
        for block in root.up_blocks:
            _expect(type(block).__name__ == "UpDecoderBlock2D")
            yield from map(_resnet, block.resnets)
            for sampler in block.upsamplers or ():
                _expect(type(sampler).__name__ == "Upsample2D" and sampler.norm is None)
                _expect(sampler.interpolate and not sampler.use_conv_transpose)
                yield _layer(sampler.conv, doubled=True)
    _expect(isinstance(root.conv_act, torch.nn.SiLU))
    yield _layer(root.conv_out, norm=root.conv_norm_out)


def _resnet(block: Any) -> Block:
    _expect(type(block).__name__ == "ResnetBlock2D" and isinstance(block.nonlinearity, _SILUS))
    _expect(not (block.training and block.dropout.p))
    _expect(block.time_emb_proj is None and block.upsample is None and block.downsample is None)
    return Block(
        _layer(block.conv1, norm=block.norm1),
        _layer(block.conv2, norm=block.norm2),
        _pointwise(block.conv_shortcut),
        float(block.output_scale_factor),
    )


def _attention(part: Any) -> Attention:
    _expect(type(part).__name__ == "Attention" and part.residual_connection)
    _expect(part.spatial_norm is None and part.norm_q is None and part.norm_k is None)
    processor = type(part.processor)
    _expect(processor.__name__ in _PROCESSORS and processor.__module__.startswith("diffusers."))
    four = (part.to_q, part.to_k, part.to_v, part.to_out[0])
    _expect(all(_is_stock(layer, torch.nn.Linear) for layer in four))
    return Attention(
        _norm(part.group_norm),
        *four,
        int(part.heads),
        float(part.rescale_output_factor),
    )


def _comfy(root: Any) -> Iterator[Step]:
    kind = type(root).__name__
    _expect(kind in ("Encoder", "Decoder") and not getattr(root, "carried", False))
    _expect(not getattr(root, "tanh_out", False) and not getattr(root, "give_pre_end", False))
    yield _layer(root.conv_in)
    if kind == "Encoder":
        for index, level in enumerate(root.down):
            yield from _comfy_blocks(level)
            if index != len(root.down) - 1:
                yield _layer(level.downsample.conv, padding=(0, 1, 0, 1))
    yield _comfy_resnet(root.mid.block_1)
    yield _comfy_attention(root.mid.attn_1)
    yield _comfy_resnet(root.mid.block_2)
    if kind == "Decoder":
        for index, level in reversed(list(enumerate(root.up))):
            yield from _comfy_blocks(level)
            if index != 0:
                _expect(getattr(level.upsample, "scale_factor", 2.0) == 2.0)
                yield _layer(level.upsample.conv, doubled=True)
    yield _layer(root.conv_out, norm=root.norm_out)


def _comfy_blocks(level: Any) -> Iterator[Step]:
    attentions = list(level.attn)
    for index, block in enumerate(level.block):
        yield _comfy_resnet(block)
        if attentions:
            yield _comfy_attention(attentions[index])


def _comfy_resnet(block: Any) -> Block:
    _expect(type(block).__name__ == "ResnetBlock" and not hasattr(block, "temb_proj"))
    same = block.in_channels == block.out_channels
    return Block(
        _layer(block.conv1, norm=block.norm1),
        _layer(block.conv2, norm=block.norm2),
        None if same else _pointwise(block.nin_shortcut),
    )


def _comfy_attention(part: Any) -> Attention:
    _expect(type(part).__name__ == "AttnBlock")
    four = [_pointwise(m) for m in (part.q, part.k, part.v, part.proj_out)]
    return Attention(_norm(part.norm), *four)


_SILUS = (torch.nn.SiLU,)


def _layer(
    conv: Any,
    *,
    norm: Any = None,
    doubled: bool = False,
    padding: tuple[int, int, int, int] | None = None,
) -> Layer:
    _expect(_is_stock(conv, torch.nn.Conv2d) and conv.padding_mode == "zeros")
    _expect(conv.dilation == (1, 1) and not isinstance(conv.padding, str))
    if padding is None or any(conv.padding):
        high, wide = conv.padding
        padding = (wide, wide, high, high)
    return Layer(conv, None if norm is None else _norm(norm), doubled, padding)


def _after(padding: int) -> tuple[int, int, int, int]:
    """diffusers pads a downsampling that has no padding of its own below and to the right."""
    return (0, 1, 0, 1) if padding == 0 else (0, 0, 0, 0)


def _norm(norm: Any) -> Any:
    _expect(_is_stock(norm, torch.nn.GroupNorm) and norm.affine)
    return norm


def _pointwise(conv: Any) -> Any:
    if conv is not None:
        _expect(_is_stock(conv, torch.nn.Conv2d) and conv.kernel_size == conv.stride == (1, 1))
        _expect(conv.groups == 1 and not any(conv.padding))
    return conv


def _is_stock(module: Any, kind: type) -> bool:
    """Whether a layer is torch's, or ComfyUI's own subclass of it that casts for the call."""
    return isinstance(module, kind) and type(module).__module__.startswith(("torch.nn.", "comfy."))


def _expect(known: bool) -> None:
    if not known:
        raise _Unknown

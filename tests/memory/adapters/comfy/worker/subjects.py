"""The three families as ComfyUI loads them, prompts on them, and what stock ComfyUI makes of those.

ComfyUI's own loaders read the files. Two sizes that they hard-code are made the files' own while
they load: the vocabulary of the text encoders, and FLUX's width in the older ComfyUI (the newer
one reads it from the file).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.model_detection
import comfy.model_management as mm
import comfy.sd
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from lowtide.memory.adapters.comfy import sampling
from lowtide.memory.adapters.comfy.batching import batched
from shapes import LORAS, SHAPES, VOCABULARY, Shape

import nodes

FOLDER = Path(os.environ["LOWTIDE_TEST_SHAPES"])
KINDS = {"sd15": "SD15", "sdxl": "KOALA_700M", "flux": "Flux"}
EDGE = 8
"""Latents of an image's edge."""

STRENGTHS = (0.8, 0.45, 1.0)
TEXTS = ("a lighthouse at dusk", "two (red:1.2) boats", "nothing but sand and wind")
_SPECIAL = {"start": VOCABULARY - 2, "end": VOCABULARY - 1, "pad": VOCABULARY - 1}


@dataclass
class Subject:
    """One family's MODEL, CLIP (or ``None``) and VAE, and what their weights were when loaded."""

    shape: Shape
    model: Any
    clip: Any
    vae: Any
    before: dict[str, dict[str, torch.Tensor]]

    def parts(self) -> dict[str, Any]:
        """The patchers."""
        found = {"model": self.model, "vae": self.vae.patcher}
        return found if self.clip is None else {**found, "clip": self.clip.patcher}


@functools.cache
def subject(name: str) -> Subject:
    """Loads a family; once in this process."""
    shape, folder = SHAPES[name], FOLDER / name
    file = str(folder / "model.safetensors")
    clip = vae = None
    with _own_sizes(shape):
        if shape.encoders:
            model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
                file, output_vae=shape.vae is None, te_model_options=shape.encoders
            )
            _fold_tokens(clip)
        else:
            model = comfy.sd.load_diffusion_model(file)
    if shape.vae is not None:
        params = {"ddconfig": shape.vae, "embed_dim": shape.channels}
        weights = comfy.utils.load_torch_file(str(folder / "vae.safetensors"))
        vae = comfy.sd.VAE(sd=weights, config={"params": params})
        vae.latent_channels = shape.channels
    detected = type(model.model.model_config).__name__
    assert detected == KINDS[name], f"ComfyUI took the {name} file for {detected}"
    made = Subject(shape, model, clip, vae, {})
    made.before = {part: _weights(patcher) for part, patcher in made.parts().items()}
    return made


@contextlib.contextmanager
def _own_sizes(shape: Shape) -> Iterator[None]:
    embeddings, detect = comfy.clip_model.CLIPEmbeddings, comfy.model_detection.detect_unet_config

    class SmallEmbeddings(embeddings):  # type: ignore[misc, valid-type]
        def __init__(self, embed_dim: int, vocab_size: int = VOCABULARY, **more: Any) -> None:
            super().__init__(embed_dim, vocab_size, **more)

    def detected(*args: Any, **kwargs: Any) -> Any:
        found = detect(*args, **kwargs)
        if found is not None and found.get("image_model") == "flux":
            found.update({key: shape.model[key] for key in ("hidden_size", "num_heads")})
            found["context_in_dim"] = shape.model["context_in_dim"]
        return found

    comfy.clip_model.CLIPEmbeddings = SmallEmbeddings
    comfy.model_detection.detect_unet_config = detected
    try:
        yield
    finally:
        comfy.clip_model.CLIPEmbeddings = embeddings
        comfy.model_detection.detect_unet_config = detect


def _fold_tokens(clip: Any) -> None:
    """Make the tokenizer give ids of the small vocabulary."""
    special = {49406: _SPECIAL["start"], 49407: _SPECIAL["end"]}
    for encoder in ("clip_l", "clip_g"):
        found = getattr(clip.cond_stage_model, encoder, None)
        if found is not None:
            found.special_tokens = dict(_SPECIAL)
    tokenize = clip.tokenizer.tokenize_with_weights

    def folded(*args: Any, **kwargs: Any) -> Any:
        return {
            name: [
                [(special.get(token, token % _SPECIAL["start"]), weight) for token, weight in batch]
                for batch in batches
            ]
            for name, batches in tokenize(*args, **kwargs).items()
        }

    clip.tokenizer.tokenize_with_weights = folded


@functools.cache
def lora_file(name: str, kind: int) -> dict[str, torch.Tensor]:
    return comfy.utils.load_torch_file(str(FOLDER / name / f"lora-{kind}.safetensors"))


def with_lora(name: str, model: Any, clip: Any, kind: int, strength: float) -> tuple[Any, Any]:
    """As the LoraLoader node: clones with one more LoRA."""
    return comfy.sd.load_lora_for_models(
        model, clip, lora_file(name, kind), strength, strength * 0.9
    )


def with_loras(name: str, model: Any, clip: Any, count: int, strength: float) -> tuple[Any, Any]:
    """The first ``count`` LoRAs, each a little weaker than the one before."""
    assert count <= LORAS
    for kind in range(1, count + 1):
        model, clip = with_lora(name, model, clip, kind, strength * (1 - 0.1 * kind))
    return model, clip


@dataclass(frozen=True)
class Picture:
    """What one prompt made."""

    latent: torch.Tensor
    image: torch.Tensor
    apart: bool = False
    """Whether a budget made positive and negative prompt be computed one after the other."""

    def differences(self, other: Picture) -> tuple[float, float]:
        """Largest absolute difference of latents and of images; 0 only where equal bit by bit."""
        return _difference(self.latent, other.latent), _difference(self.image, other.image)


_together: list[bool] = []
"""Of each prediction under a budget, whether its conds were one batch."""


def _noted(parts: Any, together: bool) -> Any:
    _together.append(together)
    return batched(parts, together)


sampling.batched = _noted


def singly(model: Any) -> Any:
    """A clone that computes positive and negative prompt one after the other, as ComfyUI does
    itself where memory is short; their last bits depend on it."""
    clone = model.clone()

    def alone(executor: Any, inner: Any, *args: Any, **kwargs: Any) -> Any:
        with batched([inner.current_patcher], False):
            return executor(inner, *args, **kwargs)

    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "apart", alone)
    return clone


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape == other.shape and torch.equal(one, other):
        return 0.0
    largest = (one.float() - other.float()).abs().max().item()
    return largest if largest > 0 else float("inf")


def picture(shape: Shape, model: Any, clip: Any, vae: Any, number: int, steps: int = 1) -> Picture:
    """One prompt through ComfyUI's own nodes; ``number`` chooses its text and its seed."""
    _together.clear()
    positive, negative = conditioning(shape, clip, number)
    latent = {"samples": torch.zeros(1, shape.channels, EDGE, EDGE)}
    scheduler = "simple" if shape.name == "flux" else "normal"
    sampler = ("euler", "dpmpp_2m", "euler")[number % 3]
    (sampled,) = nodes.common_ksampler(
        model, 100 + number, steps, shape.cfg, sampler, scheduler, positive, negative, latent
    )
    (image,) = nodes.VAEDecode().decode(vae, sampled)
    apart = bool(_together) and not _together[-1]
    made = Picture(sampled["samples"].cpu().clone(), image.cpu().clone(), apart)
    assert made.latent.isfinite().all() and made.image.isfinite().all()
    return made


def conditioning(shape: Shape, clip: Any, number: int) -> tuple[Any, Any]:
    """From the text encoder, or random where the family's would be too large."""
    if clip is not None:
        encode = nodes.CLIPTextEncode().encode
        (positive,) = encode(clip, TEXTS[number % len(TEXTS)])
        if number:
            return positive, nodes.ConditioningZeroOut().zero_out(positive)[0]
        return positive, encode(clip, "blurry")[0]
    generator = torch.Generator().manual_seed(number)
    width, pooled = shape.model["context_in_dim"], shape.model["vec_in_dim"]
    context = torch.randn(1, 16, width, generator=generator)
    vector = torch.randn(1, pooled, generator=generator)
    one = [[context, {"pooled_output": vector, "guidance": 3.5}]]
    return one, one


@functools.cache
def stock(name: str, count: int, number: int, apart: bool = False) -> Picture:
    """What ComfyUI makes without Lowtide, everything resident."""
    one = subject(name)
    unload()
    model, clip = with_loras(name, one.model, one.clip, count, STRENGTHS[number])
    model = singly(model) if apart else model
    made = picture(one.shape, model, clip, one.vae, number)
    unload()
    return made


def accelerator() -> Any:
    """The simulated accelerator's handle; ``None`` on the CPU."""
    return getattr(sys, "lowtide_sim_handle", None)


def unload() -> None:
    """Everything off the device, through ComfyUI."""
    for device in {entry.device for entry in mm.current_loaded_models}:
        mm.free_memory(1e30, device)
    while mm.current_loaded_models:
        mm.current_loaded_models.pop().model_unload()
    getattr(mm, "reset_cast_buffers", bool)()
    handle = accelerator()
    if handle is not None and handle.allocated:
        gc.collect()
        mm.soft_empty_cache()


def _weights(patcher: Any) -> dict[str, torch.Tensor]:
    return {key: value.to("cpu", copy=True) for key, value in patcher.model.state_dict().items()}


def changed(one: Subject) -> list[str]:
    """Names of weights that are not, bit by bit, what was loaded."""
    found = []
    for part, patcher in one.parts().items():
        now = patcher.model.state_dict()
        before = one.before[part]
        found += [f"{part}: {key} came or went" for key in before.keys() ^ now.keys()]
        found += [
            f"{part}: {key}"
            for key in before.keys() & now.keys()
            if before[key].dtype != now[key].dtype
            or not torch.equal(_bits(before[key]), _bits(now[key].cpu()))
        ]
    return found


def _bits(weight: torch.Tensor) -> torch.Tensor:
    """A weight as whole numbers, which compare many times faster than half precision."""
    raw = weight.contiguous().reshape(-1).view(torch.uint8)
    return raw if raw.numel() % 8 else raw.view(torch.int64)

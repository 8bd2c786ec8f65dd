"""Traces of ComfyUI's own MODEL, CLIP and VAE: loaded ones, or those of a file's header.

What ComfyUI does is called, on fakes: the CLIP encodes tokens of its own tokenizer, the model makes
its conditions and applies itself, the VAE decodes, in Lowtide's strips where a level asks for them.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ...float8 import LEAST, in_a_block
from ...levels import MemoryOptimizationConfig, OptimizationLevel
from ...planner.cache import TraceCache
from ...planner.policy import COMFYUI, placement_for
from ...planner.predict import DECODE, DENOISE, ENCODE, Turn
from ...planner.trace import Trace, key_of
from ...planner.work import Work
from ...strategies.exact_tiling import known, planned, strips, whole_bytes
from ..versions import version
from .plan_models import Models

_PREFIX = "diffusion_model."
_PROMPT = "a photograph of a lighthouse at low tide"
_LATENTS_OF_A_TILE = 16
_HALF = 0.45
"""As the VAE's own choice has them (``vae_jobs``)."""
_STREAMS = 2


@dataclass
class ComfyTraces:
    """The traces of a graph's models for one run; ``turns`` as ``PipelineTraces`` has them."""

    models: Models
    work: Work
    store: TraceCache | None = None
    attention: str = "fused"

    def __post_init__(self) -> None:
        self._traces: dict[str, Trace] = {}

    @property
    def guided(self) -> bool:
        """Whether a step predicts with and without the prompt: not where guidance is an input."""
        config = getattr(self.models.model.model.model_config, "unet_config", {})
        return self.work.guided and not config.get("guidance_embed", False)

    def turns(self, config: MemoryOptimizationConfig) -> list[Turn]:
        """What the models do under ``config``, in order."""
        found: list[Turn] = []
        if self.models.clip is not None:
            encode = self._turn("clip", ENCODE, self.trace("clip", config), config)
            found += [encode] * (2 if self.guided else 1)
        if self.models.model is not None:
            denoise = self._turn("model", DENOISE, self.trace("model", config), config)
            found.append(self._repeated(denoise, self.work.steps))
        if self.models.vae is not None:
            trace = self.trace("vae", config)
            decode = self._turn("vae", DECODE, trace, config)
            found.append(self._repeated(decode, -(-self.work.batch // self._chunk(config))))
        return found

    def _repeated(self, turn: Turn, calls: int) -> Turn:
        from dataclasses import replace

        return replace(turn, calls=calls)

    def _turn(self, name: str, stage: str, trace: Trace, config: MemoryOptimizationConfig) -> Turn:
        placement = placement_for(
            config, COMFYUI, stage, trace, coded=_in_blocks(trace), buffers=_buffers()
        )
        return Turn(name, stage, trace, placement)

    def trace(self, name: str, config: MemoryOptimizationConfig) -> Trace:
        """The trace of ``model``, ``clip`` or ``vae`` under ``config``."""
        question = self._question(name, config)
        key = key_of(question)
        if key not in self._traces:
            record = getattr(self, f"_record_{name}")
            if self.store is None:
                self._traces[key] = record(config)
            else:
                self._traces[key] = self.store.recorded(question, lambda: record(config))
        return self._traces[key]

    def _question(self, name: str, config: MemoryOptimizationConfig) -> dict[str, Any]:
        holder = getattr(self.models, name)
        inner = {"model": "model", "clip": "cond_stage_model", "vae": "first_stage_model"}[name]
        module = getattr(holder, inner)
        work = self.work.to_dict()
        del work["steps"]
        question: dict[str, Any] = {
            "class": type(module).__name__,
            "weights": [
                (key, tuple(tensor.shape), str(tensor.dtype))
                for key, tensor in (*module.named_parameters(), *module.named_buffers())
            ],
            "config": repr(getattr(getattr(module, "model_config", None), "unet_config", None)),
            "cast": str(getattr(module, "manual_cast_dtype", None)),
            "work": work,
            "kernel": self.attention,
            "torch": version("torch"),
            "comfyui": _comfy_version(),
        }
        if name == "model" and self.models.clip is not None:
            question["clip"] = self._question("clip", config)
        if name == "vae":
            question["tile"] = self._edge(config)
            question["keep"] = _gentle(config)
            question["chunk"] = self._chunk(config)
        return question

    def _record_clip(self, _config: MemoryOptimizationConfig) -> Trace:
        return self._encode()[0]

    def _encode(self) -> tuple[Trace, tuple[tuple[int, ...], ...]]:
        """The trace, and the shapes of the embeddings and of the pooled ones."""
        from ...tracing import fake_copy, fake_mode, record

        clip = self.models.clip
        mode = fake_mode()
        twin: Any = fake_copy(clip.cond_stage_model, mode)
        tokens = clip.tokenize(_PROMPT)
        shapes: list[tuple[int, ...]] = []

        def run() -> Any:
            encoded = twin.encode_token_weights(tokens)
            for part in encoded[:2]:
                shapes.append(() if part is None else tuple(part.shape))
            return encoded

        return record(twin, run, mode, attention=self.attention), tuple(shapes)

    def _record_model(self, _config: MemoryOptimizationConfig) -> Trace:
        from ...tracing import fake_copy, fake_mode, record
        from .plan_conditions import conditions

        patcher = self.models.model
        shapes = self._encode()[1] if self.models.clip is not None else ()
        mode = fake_mode()
        twin: Any = fake_copy(patcher.model, mode)
        count = 2 if self.guided else 1
        with mode:
            noise = torch.empty(self._latent(patcher.model), device="cuda:0")
            more = conditions(twin, noise, shapes, count, self.work)
            inputs = torch.empty((count * noise.shape[0], *noise.shape[1:]), device="cuda:0")
            sigma = torch.empty(inputs.shape[0], device="cuda:0")
        call = lambda: twin.apply_model(inputs, sigma, **more)  # noqa: E731
        given = [noise, inputs, sigma, more]
        return record(twin, call, mode, given, attention=self.attention)

    def _latent(self, model: Any) -> tuple[int, ...]:
        form = model.latent_format
        factor = int(getattr(form, "spacial_downscale_ratio", 8) or 8)
        size: tuple[int, ...] = (self.work.height // factor, self.work.width // factor)
        if getattr(form, "latent_dimensions", 2) == 3:
            size = ((self.work.frames - 1) // 4 + 1, *size)
        return (self.work.batch, int(form.latent_channels), *size)

    def _record_vae(self, config: MemoryOptimizationConfig) -> Trace:
        from ...tracing import fake_copy, fake_mode, record

        vae = self.models.vae
        mode = fake_mode()
        twin: Any = fake_copy(vae.first_stage_model, mode)
        factor = int(vae.spacial_compression_decode())
        size: tuple[int, ...] = (self.work.height // factor, self.work.width // factor)
        edge = self._edge(config)
        plan = None
        if edge is not None and vae.latent_dim == 2 and known(vae.first_stage_model):
            plan = self._strips(edge, config)
        elif edge is not None:
            size = tuple(min(length, edge // factor) for length in size)  # one blended tile
        if vae.latent_dim == 3:
            size = ((self.work.frames - 1) // 4 + 1, *size)
        images = min(self.work.batch, self._chunk(config))
        with mode:
            shape = (images, int(vae.latent_channels), *size)
            latent = torch.empty(shape, dtype=vae.vae_dtype, device="cuda:0")

        def run() -> Any:
            cut = nullcontext() if plan is None else strips(twin, "decoder", plan)
            with cut:
                return twin.decode(latent).to("cpu").float()

        return record(twin, run, mode, [latent], attention=self.attention)

    def _strips(self, edge: int, config: MemoryOptimizationConfig) -> Any:
        from dataclasses import replace

        vae = self.models.vae
        module = vae.first_stage_model.decoder
        size = (min(self.work.batch, self._chunk(config)), self.work.height, self.work.width)
        itemsize = vae.vae_dtype.itemsize
        lean = planned(module, *size, itemsize, edge)
        untiled = whole_bytes(module, *size, itemsize)
        if lean is None or untiled is None or max(size[1:]) <= edge:
            return None
        keep = max(0, int(_HALF * untiled) - lean.strips) if _gentle(config) else 0
        return replace(lean, keep=keep)

    def _edge(self, config: MemoryOptimizationConfig) -> int | None:
        """Pixels of a tile; ``None`` = whole images."""
        if not config.enable_vae_tiling:
            return None
        edge = config.tile_for(self.work.height, self.work.width)
        if config.vae_tile_size is None:
            factor = int(self.models.vae.spacial_compression_decode())
            edge = max(edge, _LATENTS_OF_A_TILE * factor)
        return edge

    def _chunk(self, config: MemoryOptimizationConfig) -> int:
        """Images the VAE works on at once; the core takes as many as it has memory for."""
        if not config.enable_vae_slicing:
            return self.work.batch
        return config.vae_decode_chunk_size or 1


def _gentle(config: MemoryOptimizationConfig) -> bool:
    return config.level in (OptimizationLevel.NONE, OptimizationLevel.BALANCED)


def _in_blocks(trace: Trace) -> frozenset[int]:
    """The weights that FP8 storage takes of a ComfyUI model."""
    return frozenset(
        index
        for index, weight in enumerate(trace.weights)
        if weight.name.startswith(_PREFIX)
        and weight.name.endswith(".weight")
        and trace.modules[weight.owner][1] in ("Linear", "Conv")
        and weight.numel >= LEAST
        and weight.nbytes > weight.numel
        and in_a_block(trace.modules[weight.owner][0].removeprefix(_PREFIX))
    )


def _buffers() -> int:
    """Buffers that newer cores copy streamed weights into on an NVIDIA GPU."""
    import comfy.model_management as mm

    return _STREAMS if hasattr(mm, "STREAM_CAST_BUFFERS") else 0


def _comfy_version() -> str | None:
    try:
        from comfyui_version import __version__
    except ImportError:
        return None
    return str(__version__)

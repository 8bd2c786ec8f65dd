"""Traces of ComfyUI's own MODEL, CLIP and VAE: loaded ones, or those of a file's header.

What ComfyUI does is called, on fakes: the CLIP encodes tokens of its own tokenizer, the model makes
its conditions and applies itself, the VAE decodes, in Lowtide's strips where a level asks for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...float8 import LEAST, in_a_block
from ...levels import MemoryOptimizationConfig
from ...planner.cache import TraceCache
from ...planner.loader import Loader
from ...planner.policy import COMFYUI, placement_for
from ...planner.predict import DECODE, DENOISE, ENCODE, Turn
from ...planner.trace import Trace, key_of
from ...planner.work import Work
from .plan_budget import (
    may_stream,
    partly,
    sampling_turn,
    start_of,
    vae_estimate,
    vae_room,
    whole_or_streamed,
)
from .plan_models import Models
from .plan_staying import settled
from .plan_twin import identity, traced, twin_of
from .plan_vae import DECODE_WORK, VaeWork, calls_of, record_vae, vae_work
from .shares import stays_under

_PREFIX = "diffusion_model."
_PROMPT = "a photograph of a lighthouse at low tide"
_STREAMS = 2
_SAMPLER, _COND = 9, 1
"""Latents in float32 that the core's sampler holds besides the model's inputs, and for each cond;
counted on the simulated accelerator."""


@dataclass
class ComfyTraces:
    """The traces of a graph's models for one run; ``turns`` as ``PipelineTraces`` has them."""

    models: Models
    work: Work
    store: TraceCache | None = None
    attention: str = "fused"
    workspace_factor: float = 1.0
    loader: Loader | None = None
    """How weights are streamed; ``None`` = as in this process."""

    def __post_init__(self) -> None:
        self._traces: dict[str, Trace] = {}
        self._questions: dict[str, dict[str, Any]] = {}

    @property
    def guided(self) -> bool:
        """Whether a step predicts with and without the prompt: not where guidance is an input."""
        if self.models.model is None:
            return self.work.guided
        config = getattr(self.models.model.model.model_config, "unet_config", {})
        return self.work.guided and not config.get("guidance_embed", False)

    @property
    def _loader(self) -> Loader:
        return self.loader or loader_here()

    def turns(self, config: MemoryOptimizationConfig) -> list[Turn]:
        """What the models do under ``config``, in order; under its budget, as it settles."""
        found: list[Turn] = []
        if self.models.clip is not None:
            found += self._texts(self.clip_turn(config), config)
        if self.models.model is not None:
            found.append(self.model_turn(config))
        if self.models.vae is not None:
            found.append(self.vae_turn(DECODE_WORK, config))
        return list(settled(found, config, self.workspace_factor))

    def _texts(self, turn: Turn, config: MemoryOptimizationConfig) -> list[Turn]:
        """The prompt's texts: under a budget the encoder stays from one to the next."""
        count = 2 if self.guided else 1
        budget = config.budget_bytes
        if budget is None or not stays_under(config):
            return [turn] * count
        if turn.placement.streams and count > 1 and not self._follows_its_weights():
            turn = partly(turn, budget, self._loader, self.workspace_factor)
        return [replace(turn, calls=count)]

    def clip_turn(self, config: MemoryOptimizationConfig) -> Turn:
        """One encoding. Older cores compute where the embeddings lie, which may be the host."""
        turn = self._turn("clip", ENCODE, self.trace("clip", config), config)
        if config.budget_bytes is None or turn.placement.streams:
            return self.following(turn)
        turn = replace(turn, on_host=self._follows_its_weights())
        return whole_or_streamed(turn, config.budget_bytes, self._loader, self.workspace_factor)

    def following(self, turn: Turn) -> Turn:
        """A text encoder's turn, on the host where its weights are and it computes there."""
        return replace(turn, on_host=turn.placement.streams and self._follows_its_weights())

    def model_turn(self, config: MemoryOptimizationConfig) -> Turn:
        """All steps of a sampling."""
        turn = self._sampled(config)
        if config.budget_bytes is None:
            return turn
        options = [turn]
        if self.guided:
            alone = replace(self, work=replace(self.work, guided=False))._sampled(config)
            options.append(replace(alone, calls=2 * alone.calls))
        patcher = self.models.model
        start = start_of(patcher, self._latent(patcher.model), config.budget_bytes)
        return sampling_turn(
            options, config.budget_bytes, self._loader, start, self.workspace_factor
        )

    def _sampled(self, config: MemoryOptimizationConfig) -> Turn:
        turn = self._turn("model", DENOISE, self.trace("model", config), config)
        latent = math.prod(self._latent(self.models.model.model)) * torch.float32.itemsize
        beside = latent * (_SAMPLER + _COND * (2 if self.guided else 1))
        return replace(turn, calls=self.work.steps, beside=beside)

    def vae_turn(self, kind: str, config: MemoryOptimizationConfig) -> Turn:
        """The VAE's decode or encode of the run's images under ``config``."""
        asked = self._vae_work(kind, config)
        turn = self._turn("vae", DECODE, self._vae_trace(asked, config), config)
        turn = replace(turn, calls=calls_of(asked, self.work))
        if config.budget_bytes is None or not may_stream(self.models.vae):
            return turn
        estimate = vae_estimate(asked)
        factor = self.workspace_factor
        return whole_or_streamed(turn, config.budget_bytes, self._loader, factor, estimate)

    def _follows_its_weights(self) -> bool:
        parts = self.models.clip.cond_stage_model.modules()
        return not any(hasattr(part, "execution_device") for part in parts)

    def _turn(self, name: str, stage: str, trace: Trace, config: MemoryOptimizationConfig) -> Turn:
        placement = placement_for(
            config, COMFYUI, stage, trace, coded=_in_blocks(trace), loader=self._loader
        )
        return Turn(name, stage, trace, placement, empties=True)

    def trace(self, name: str, config: MemoryOptimizationConfig) -> Trace:
        """The trace of ``model``, ``clip`` or ``vae`` (its decode) under ``config``.

        Raises:
            TargetError: it can't be traced, and why.
        """
        if name == "vae":
            return self._vae_trace(self._vae_work(DECODE_WORK, config), config)
        record = self._record_clip if name == "clip" else self._record_model
        return self._kept(name, self._question(name), record)

    def _vae_work(self, kind: str, config: MemoryOptimizationConfig) -> VaeWork:
        vae, budget = self.models.vae, config.budget_bytes
        most = None if budget is None else vae_room(vae, budget)
        return vae_work(vae, kind, config, self.work, most)

    def _vae_trace(self, asked: VaeWork, _config: MemoryOptimizationConfig) -> Trace:
        question = {**self._question("vae"), **asked.key()}
        return self._kept("vae", question, lambda: self._record_vae(asked))

    def _kept(self, name: str, question: dict[str, Any], record: Callable[[], Trace]) -> Trace:
        key = key_of(question)
        if key not in self._traces:
            make = traced(name, record)
            if self.store is None:
                self._traces[key] = make()
            else:
                self._traces[key] = self.store.recorded(question, make)
        return self._traces[key]

    def _question(self, name: str) -> dict[str, Any]:
        """What the trace of a part depends on."""
        if name not in self._questions:
            holder = getattr(self.models, name)
            patcher = holder if name == "model" else holder.patcher
            work = self.work.to_dict()
            del work["steps"]
            question = {
                **identity(patcher),
                "work": work,
                "kernel": self.attention,
            }
            if name == "clip":
                question["layer"] = getattr(holder, "layer_idx", None)
            if name == "model" and self.models.clip is not None:
                question["clip"] = self._question("clip")
            self._questions[name] = question
        return self._questions[name]

    def _record_clip(self) -> Trace:
        return self._encode()[0]

    def _encode(self) -> tuple[Trace, tuple[tuple[int, ...], ...]]:
        """The trace, and the shapes of the embeddings and of the pooled ones."""
        from ...tracing import fake_mode, record

        clip = self.models.clip
        mode = fake_mode()
        twin = twin_of(clip.patcher, mode)
        _prepare(twin, clip)
        tokens = clip.tokenize(_PROMPT)
        shapes: list[tuple[int, ...]] = []

        def run() -> Any:
            encoded = twin.encode_token_weights(tokens)
            for part in encoded[:2]:
                shapes.append(() if part is None else tuple(part.shape))
            return encoded

        return record(twin, run, mode, attention=self.attention), tuple(shapes)

    def _record_model(self) -> Trace:
        from ...tracing import fake_mode, record
        from .plan_conditions import conditions

        patcher = self.models.model
        shapes = self._encode()[1] if self.models.clip is not None else ()
        mode = fake_mode()
        twin = twin_of(patcher, mode)
        count = 2 if self.guided else 1
        with torch.inference_mode(False), torch.no_grad(), mode:
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

    def _record_vae(self, asked: VaeWork) -> Trace:
        from ...tracing import fake_mode

        mode = fake_mode()
        twin = twin_of(self.models.vae.patcher, mode)
        return record_vae(self.models.vae, twin, mode, asked, self.attention)


def _prepare(twin: Any, clip: Any) -> None:
    """Set a text encoder up as encoding does: its options, and no device of an earlier run."""
    if hasattr(twin, "reset_clip_options"):
        twin.reset_clip_options()
        if getattr(clip, "layer_idx", None) is not None:
            twin.set_clip_options({"layer": clip.layer_idx})


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


def loader_here() -> Loader:
    """How this ComfyUI's loader streams; one that was told of no GPU plans for an NVIDIA one."""
    import comfy.model_management as mm

    if not hasattr(mm, "STREAM_CAST_BUFFERS"):
        return Loader(holds=False)
    if mm.is_device_cpu(mm.get_torch_device()):
        return Loader(_STREAMS, reserves=True)
    return Loader(int(mm.NUM_STREAMS), reserves=True)

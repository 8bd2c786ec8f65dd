"""Traces of a diffusers pipeline's components, and the turns they take under a configuration.

The pipeline may be loaded, or have weights on ``meta``; its weights are never read. Tiling, slicing
and chunking are Lowtide's own strategies, applied to the fake components: what is traced is what
would run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..errors import TargetError
from ..levels import MemoryOptimizationConfig
from ..planner.cache import TraceCache
from ..planner.policy import DIFFUSERS, placement_for
from ..planner.predict import DECODE, DENOISE, ENCODE, Turn
from ..planner.trace import Trace, key_of
from ..planner.work import Work
from ..stages import DECODING, DENOISING, TEXT_ENCODING, stage_of
from .diffusers import CASTING_HOOK, hook_of, modules_of
from .diffusers_calls import Call, Shapes, call_of, decode_of
from .versions import version

_STAGES = {TEXT_ENCODING: ENCODE, DENOISING: DENOISE, DECODING: DECODE}
_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")


class PipelineTraces:
    """The traces of one pipeline for one run. Components that do no work in it are left out.

    Args:
        attention: the kernel, as ``tracing.record`` takes it.
        store: where traces are kept; ``None`` = for this object only.
    """

    def __init__(
        self,
        pipe: Any,
        work: Work,
        *,
        attention: str = "fused",
        store: TraceCache | None = None,
    ) -> None:
        self.pipe = pipe
        self.work = work
        self.attention = attention
        self.store = store
        self.parts = {
            name: part
            for name, part in modules_of(pipe).items()
            if stage_of(name) in _STAGES and "image_encoder" not in name
        }
        self._traces: dict[str, Trace] = {}
        self._headers: dict[str, str] = {}
        self.shapes = Shapes(work, _factor(pipe), _frames_factor(pipe))
        self.one = Shapes(replace(work, batch=1), self.shapes.factor)
        self.guided = work.guided and _guides(pipe)
        self.may_upcast = hasattr(pipe, "upcast_vae")
        # Pipelines with several CLIPs take a hidden state before the last from each.
        several = ("unet" in self.parts and "text_encoder_2" in self.parts) or (
            "text_encoder_3" in self.parts
        )
        self.hidden_states = several
        if not self.parts:
            raise TargetError(f"this {type(pipe).__name__} has no component that could be planned")

    def order(self, config: MemoryOptimizationConfig) -> list[str]:
        """The components that work on the device under ``config``, in order."""
        stages = {name: _STAGES[stage_of(name) or ""] for name in self.parts}
        order = sorted(stages, key=lambda name: list(_STAGES.values()).index(stages[name]))
        return [name for name in order if stages[name] == DENOISE] if config.cpu_mode else order

    def keys(self, config: MemoryOptimizationConfig) -> dict[str, str]:
        """The names of the traces that ``turns`` needs, by component."""
        return {name: key_of(self._question(name, config)) for name in self.order(config)}

    def turns(self, config: MemoryOptimizationConfig) -> list[Turn]:
        """What the components do under ``config``, in order."""
        stages = {name: _STAGES[stage_of(name) or ""] for name in self.parts}
        order = self.order(config)
        encoders = [name for name in order if stages[name] == ENCODE]
        prompt = {name: self._embeddings(self.trace(name, config)) for name in encoders}
        once = sum(prompt.values())
        turns: list[Turn] = []
        # The negative prompt goes through all encoders after the other one has.
        for rounds in range(2 if self.guided else 1):
            kept = rounds * once
            for name in encoders:
                turns.append(self._turn(name, config, order, beside=kept))
                kept += prompt[name]
        # Both stay beside what is joined of them for the denoiser, all to the end.
        kept = 2 * once if self.guided else 0
        for name in order:
            if stages[name] == DENOISE:
                turn = self._turn(name, config, order, beside=kept)
                latents = turn.trace.output_bytes // (2 if self.guided else 1)
                turns.append(replace(turn, beside=kept + latents, calls=self.work.steps))
                kept += latents + (2 if self.guided else 1) * once
        turns += [
            self._turn(name, config, order, beside=kept) for name in order if stages[name] == DECODE
        ]
        return turns

    def _turn(
        self, name: str, config: MemoryOptimizationConfig, order: list[str], beside: int
    ) -> Turn:
        part = self.parts[name]
        stage = _STAGES[stage_of(name) or ""]
        trace = self.trace(name, config)
        skip = tuple(
            pattern
            for attribute in ("_skip_layerwise_casting_patterns", "_keep_in_fp32_modules")
            for pattern in getattr(part, attribute, None) or ()
        )
        placement = placement_for(config, DIFFUSERS, stage, trace, skip=skip)
        by_turns = config.offload == "component" and not config.cpu_mode
        before = order[order.index(name) - 1] if name != order[0] else None
        return Turn(
            name,
            stage,
            trace,
            placement,
            beside=beside,
            resting=_bytes(part) if self._upcasts(part) and placement.stays else None,
            after=before if by_turns else None,
            lingers=by_turns,
        )

    def _upcasts(self, part: Any) -> bool:
        """Whether the pipeline decodes in float32 what is stored in float16, as SDXL's does."""
        asked = self.may_upcast and getattr(getattr(part, "config", None), "force_upcast", False)
        return bool(asked) and getattr(part, "dtype", None) is torch.float16

    def _embeddings(self, trace: Trace) -> int:
        """Bytes of a prompt's embeddings for all images: one hidden state of those returned."""
        sizes = {trace.storages[number] for number in set(trace.outputs)}
        return self.work.batch * max(sizes, default=0)

    def trace(self, name: str, config: MemoryOptimizationConfig) -> Trace:
        """The trace of one component's call under ``config``."""
        question = self._question(name, config)
        key = key_of(question)
        if key not in self._traces:
            if self.store is None:
                self._traces[key] = self._record(name, config)
            else:
                self._traces[key] = self.store.recorded(
                    question, lambda: self._record(name, config)
                )
        return self._traces[key]

    def _question(self, name: str, config: MemoryOptimizationConfig) -> dict[str, Any]:
        """Everything the trace depends on."""
        part = self.parts[name]
        stage = stage_of(name)
        cut: dict[str, Any] = {}
        if stage == DECODING:
            size = (self.work.height, self.work.width)
            cut = {
                "tile": config.tile_for(*size) if config.enable_vae_tiling else None,
                "mode": config.vae_tile_mode if config.enable_vae_tiling else None,
                "blended": config.level.value == "ultra",
                "overlap": config.vae_tile_overlap,
                "slicing": config.vae_decode_chunk_size or config.enable_vae_slicing,
            }
        elif stage == DENOISING:
            cut = {
                "feed forward": config.forward_chunk_size,
                "attention": config.attention,
                "slice": config.attention_slice_size,
            }
        work = self.work.to_dict()
        del work["steps"]
        return {
            "class": type(part).__name__,
            "weights": self._header(name),
            "work": work,
            "factor": self.shapes.factor,
            "kernel": self.attention,
            "hidden states": self.hidden_states,
            "upcast": self._upcasts(part),
            **cut,
            **{library: version(library) for library in _LIBRARIES},
        }

    def _header(self, name: str) -> str:
        """A name for the component's settings, and its weights' shapes and types."""
        if name not in self._headers:
            part = self.parts[name]
            of_all = {"config": repr(sorted(_settings(part).items())), "weights": _header(part)}
            self._headers[name] = key_of(of_all)
        return self._headers[name]

    def _record(self, name: str, config: MemoryOptimizationConfig) -> Trace:
        from ..tracing import fake_copy, fake_mode, record

        part = self.parts[name]
        stage = stage_of(name)
        upcast = torch.float32 if self._upcasts(part) else None
        mode = fake_mode()
        cast = _cast_types(part)
        twin: Any = fake_copy(part, mode, lambda name, _: upcast or cast.get(name))
        _apply(config, twin, name)
        dtype = upcast or next(
            (weight.dtype for weight in twin.parameters() if weight.is_floating_point()),
            torch.float32,
        )
        with mode:
            call: Call
            if stage == DECODING:
                call = decode_of(twin, self.shapes, dtype)
            elif stage == TEXT_ENCODING:
                # Prompts are encoded one after the other, each for all images.
                call = call_of(twin, self.one, dtype, hidden_states=self.hidden_states)
            else:
                call = call_of(twin, self.shapes, dtype)
        return record(twin, call.run, mode, [call.inputs], attention=self.attention)


def _apply(config: MemoryOptimizationConfig, twin: Any, name: str) -> None:
    """Lowtide's own strategies on a fake component, as ``pipelines.apply_all`` has them."""
    from ..strategies import attention, forward_chunking
    from .pipelines import _vae

    stage = stage_of(name)
    if stage == DECODING and hasattr(twin, "decode"):
        for _ in _vae(config, {name: twin}):
            pass
    elif stage == DENOISING:
        if config.forward_chunk_size is not None:
            chunking = forward_chunking.ForwardChunking(config.forward_chunk_size)
            forward_chunking.apply(chunking, twin, name)
        if config.attention == "sliced":
            device = torch.device("cuda:0")
            kernel = attention.Attention(config.attention, device, config.attention_slice_size)
            attention.apply(kernel, twin, name)


def _cast_types(part: torch.nn.Module) -> dict[str, torch.dtype]:
    """The types that layerwise casting computes in, of the weights it stores in smaller ones."""
    found: dict[str, torch.dtype] = {}
    for path, layer in part.named_modules():
        hook = hook_of(layer, CASTING_HOOK)
        if hook is not None:
            for name, weight in layer._parameters.items():
                if weight is not None and weight.dtype == hook.storage_dtype:
                    found[f"{path}.{name}"] = hook.compute_dtype
    return found


def _settings(part: Any) -> dict[str, Any]:
    """The component's configuration: a dictionary of diffusers, or an object of transformers."""
    config = part.config
    settings = dict(config.to_dict() if hasattr(config, "to_dict") else config)
    return {name: value for name, value in settings.items() if not name.startswith("_")}


def _header(part: torch.nn.Module) -> list[tuple[str, tuple[int, ...], str]]:
    cast = _cast_types(part)
    return [
        (name, tuple(tensor.shape), str(cast.get(name, tensor.dtype)))
        for name, tensor in (*part.named_parameters(), *part.named_buffers())
    ]


def _bytes(part: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers()))


def _factor(pipe: Any) -> int:
    value = getattr(pipe, "vae_scale_factor", None) or getattr(
        pipe, "vae_scale_factor_spatial", None
    )
    return value if isinstance(value, int) else 8


def _frames_factor(pipe: Any) -> int:
    value = getattr(pipe, "vae_scale_factor_temporal", None)
    return value if isinstance(value, int) else 4


def _guides(pipe: Any) -> bool:
    """Whether the pipeline encodes a negative prompt: not where guidance is the model's input."""
    denoiser = getattr(pipe, "transformer", None)
    return not bool(getattr(getattr(denoiser, "config", None), "guidance_embeds", False))

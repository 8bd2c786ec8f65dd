"""What a prompt's nodes worked on, for the history: class, size and shape, no content.

Read from the inputs of each node that ran, while ComfyUI's cache still has them. Only text and
numbers are kept: no model, no tensor, no prompt.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ... import backend, learning, verified
from ...device import snapshot
from ...history_rows import FAILED as ENDED_BADLY
from ...history_rows import FITS, OUT_OF_MEMORY, Key, Row
from ...history_rows import INTERRUPTED as STOPPED
from ...run_key import (
    AS_LOADED,
    PATCHED,
    gpu_name,
    level_of,
    model_name,
    positions,
    shape_name,
)
from ...stages import DECODING, DENOISING, TEXT_ENCODING
from ...timeline import DONE, INTERRUPTED, Attempt, NodeSpan
from ...verified import Verified
from . import float8, foretold, visits
from .graph import inputs_of
from .residency import residency_of

if TYPE_CHECKING:
    from .prompt import Prompt

logger = logging.getLogger("lowtide")

ENCODING = "encoding"
_NO_MEMORY = ("outofmemory", "out of memory")


@dataclass(frozen=True)
class Work:
    """What one node did, as the history knows it."""

    stage: str
    model: str
    shapes: str
    size: int
    plan: str
    budget: int | None = None
    own_peak: int | None = None
    """Bytes at its peak without models that stayed on the device beside; ``None`` = none did."""

    def measured(self, span: NodeSpan) -> int | None:
        """Bytes at the peak of what it did itself."""
        return measured_of(span) if self.own_peak is None else self.own_peak


_gpus: dict[str, str] = {}


def take(prompt: Prompt, node: str) -> None:
    """Note what ``node`` of a running prompt worked on, if a model did; never raises."""
    if not prompt.learns or prompt.registry is None or prompt.executor is None:
        return
    if node not in prompt.ran:
        return
    caches = prompt.executor.caches

    def outputs(one: str) -> list[Any] | None:
        return visits.outputs_of(caches, one)

    try:
        found = work_of(inputs_of(prompt.registry.dynprompt, node, outputs), outputs(node))
    except Exception:  # no prompt fails for its history
        logger.exception("what node %s worked on was not noted for the history", node)
        return
    if found is not None:
        found = replace(found, own_peak=prompt.own_peak)
        prompt.work[node] = found
        _verify(prompt, node, found)


def _verify(prompt: Prompt, node: str, work: Work) -> None:
    """Note what was foretold of a node's work beside what it took."""
    span = None if prompt.recorder is None else prompt.recorder.timeline.of(node)
    if prompt.recorder is None or span is None:
        return
    key = Key(gpu(prompt.recorder.device), work.model, work.shapes, work.plan, work.size)
    told = foretold.of(key, work.stage)
    if told is not None:
        learning.expect(key, work.stage, told.peak, told.seconds, told.corrected)
    if told is not None or work.budget is not None:
        predicted = None if told is None else told.corrected
        stage = Verified(work.stage, predicted, work.measured(span))
        highest = None if work.own_peak is None else measured_of(span)
        verified.note(f"{span.class_type} ({node})", [stage], work.budget, highest)


def measured_of(span: NodeSpan) -> int | None:
    """Highest bytes allocated while a node ran, DynamicVRAM's pages among them."""
    peak = span.peak_allocated
    return None if peak is None else peak + (span.pages_peak or 0)


def log(prompt: Prompt, message: dict[str, Any]) -> None:
    """Hand a prompt that has ended to the history; ``message`` is ComfyUI's about its end.

    Never raises.
    """
    try:
        _log(prompt, message)
    except Exception:  # no prompt fails for its history
        logger.exception("a prompt was not handed to the history")


def _log(prompt: Prompt, message: dict[str, Any]) -> None:
    work, recorder = dict(prompt.work), prompt.recorder
    if not work or recorder is None:
        return
    device = recorder.device
    info = backend.mem_get_info(device) if device.type != "cpu" else None
    free = None if info is None else info[0] + (backend.reserved(device) or 0)
    name = gpu(device)
    spans = [span for span in recorder.timeline.nodes if span.node in work]
    attempts = list(recorder.timeline.attempts)
    ran_out = out_of_memory(message)
    ended = time.time()
    learning.log(lambda: rows(name, work, spans, attempts, ran_out=ran_out, free=free, at=ended))


def rows(
    gpu: str,
    work: dict[str, Work],
    spans: Sequence[NodeSpan],
    attempts: Sequence[Attempt],
    *,
    ran_out: bool,
    free: int | None,
    at: float,
) -> list[Row]:
    """A row for each span a model worked in.

    A node that had to run again with less did not fit, whatever became of it.
    """
    again = {attempt.node for attempt in attempts}
    found = []
    for span in spans:
        done = work[span.node]
        if span.node in again:
            outcome = OUT_OF_MEMORY
        elif span.status == DONE:
            outcome = FITS
        elif span.status == INTERRUPTED:
            outcome = STOPPED
        else:
            outcome = OUT_OF_MEMORY if ran_out else ENDED_BADLY
        key = Key(gpu, done.model, done.shapes, done.plan, done.size)
        predicted, seconds = learning.expected(key, done.stage)
        found.append(
            Row(
                key,
                done.stage,
                level_of(done.plan),
                at,
                outcome,
                predicted=predicted,
                measured=done.measured(span),
                reserved=span.peak_reserved,
                predicted_seconds=seconds,
                seconds=span.seconds,
                free=free,
            )
        )
    return found


def out_of_memory(message: dict[str, Any]) -> bool:
    """Whether ComfyUI's message about a prompt's end says that a device was out of memory."""
    said = f"{message.get('exception_type', '')} {message.get('exception_message', '')}".lower()
    return any(words in said for words in _NO_MEMORY)


def work_of(values: Sequence[Any], made: Sequence[Any] | None) -> Work | None:
    """What a node with these inputs did; ``None`` if no model worked in it, or more than one.

    Args:
        values: what its inputs were given. made: its outputs, where they are known.
    """
    model = next((it for it in map(_denoiser, values) if it is not None), None)
    vae = next((it for it in values if hasattr(it, "first_stage_model")), None)
    clip = next((it for it in values if hasattr(it, "cond_stage_model")), None)
    latent = next((it for it in map(_latent, values) if it), None)
    image = next((it for it in map(_image, values) if it), None)
    if model is not None and vae is None and latent is not None:
        return _work(DENOISING, model, model.model, latent, positions(latent))
    if vae is not None and model is None and (latent or image):
        plan = getattr(getattr(vae, "lowtide_plan", None), "plan", "")
        shape = latent or image or ()
        # Images are (batch, height, width, channels).
        size = positions(shape) if latent else shape[0] * shape[1] * shape[2]
        stage = DECODING if latent else ENCODING
        return _work(stage, vae.patcher, vae.first_stage_model, shape, size, plan)
    if clip is not None and model is None and _encoded(made):
        return _work(TEXT_ENCODING, clip.patcher, clip.cond_stage_model, (), 0)
    return None


def _work(
    stage: str, patcher: Any, module: Any, shape: Sequence[int], size: int, plan: str = ""
) -> Work:
    residency = residency_of(patcher)
    plan = plan or (residency.plan if residency is not None else "") or AS_LOADED
    if getattr(patcher, "patches", None):
        plan = f"{plan}, {PATCHED}"
    budget = None if residency is None else residency.budget
    name = name_of(patcher, module)
    return Work(stage, name, shape_name(shape), size, plan, budget)


def name_of(patcher: Any, module: Any) -> str:
    """The model's name in the history: by the bytes of its weights as they were loaded."""
    stored = getattr(patcher, "attachments", {}).get(float8.ATTACHMENT)
    saved = 0 if stored is None else stored.saved
    return model_name(type(module).__name__, int(patcher.model_size()) + saved)


def _denoiser(value: Any) -> Any | None:
    """The patcher of a MODEL, or of the one a guider holds."""
    patcher = getattr(value, "model_patcher", value)
    inner = getattr(patcher, "model", None)
    return patcher if hasattr(inner, "diffusion_model") else None


def _latent(value: Any) -> tuple[int, ...] | None:
    return _shape(value.get("samples")) if isinstance(value, dict) else None


def _image(value: Any) -> tuple[int, ...] | None:
    shape = _shape(value) if isinstance(value, torch.Tensor) else None
    return shape if shape is not None and len(shape) == 4 else None


def _shape(value: Any) -> tuple[int, ...] | None:
    shape = getattr(value, "shape", None)
    try:
        return None if shape is None else tuple(int(edge) for edge in shape)
    except (TypeError, ValueError):
        return None  # several tensors in one: there is no one shape


def _encoded(made: Sequence[Any] | None) -> bool:
    """Whether a node's outputs hold conditioning: a list of pairs of a tensor and a dict."""
    for values in made or ():
        first = values[0] if isinstance(values, list) and values else None
        pair = first[0] if isinstance(first, list) and first else None
        if isinstance(pair, (list, tuple)) and pair and isinstance(pair[0], torch.Tensor):
            return True
    return False


def gpu(device: torch.device) -> str:
    known = _gpus.get(str(device))
    if known is None:
        known = _gpus[str(device)] = gpu_name(snapshot(device), str(torch.__version__))
    return known

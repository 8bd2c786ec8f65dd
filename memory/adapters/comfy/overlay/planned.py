"""What nodes of a graph are predicted to take, for models that ComfyUI's cache already holds.

The planner runs the models' own code on fakes. The first time a second or more, so it does so in a
thread of its own: whoever asks waits a moment, and is answered by the next source until then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from .... import profiles
from ....device import snapshot
from ....errors import LowtideError
from ....later import Later
from ....planner.api_graph import Graph, links
from ....planner.predict import Turn, predict
from ....planner.wired import beside
from ....planner.work import Work
from ....units import format_bytes
from ... import comfy
from .answers import Found, Unknown
from .estimates import cached, latent_shape, of_model, of_vae

logger = logging.getLogger("lowtide")

PATIENCE = 0.25
"""Seconds to wait for a prediction before the next source is asked."""
MOST = 500
"""Predictions remembered; those asked for longest ago are forgotten first."""
AGAIN = 60.0
"""Seconds until a node that could not be predicted is tried again."""

_PENDING = Unknown("it is being predicted", pending=True)


@dataclass
class _Asked:
    """One prediction that was asked for, ``at`` a moment of the monotonic clock."""

    answer: Future[Found | None] = field(default_factory=Future)
    at: float = field(default_factory=time.monotonic)

    def stands(self) -> bool:
        """Whether it need not be made again: not if it failed, a while ago."""
        if not self.answer.done() or time.monotonic() - self.at < AGAIN:
            return True
        return self.answer.exception() is None and self.answer.result() is not None

    def by(self, job: Callable[[], Found | None]) -> None:
        """Answer it."""
        try:
            self.answer.set_result(job())
        except Exception as error:  # told to whoever waits
            logger.debug("a prediction failed", exc_info=True)
            self.answer.set_exception(error)


_lock = threading.Lock()
_asked: OrderedDict[str, _Asked] = OrderedDict()
_later = Later("lowtide fit check")


def predicted(graph: Graph, node: str, named: Mapping[str, str]) -> Found | Unknown | None:
    """Bytes at the node's peak, its weights included; ``None`` where it can't be said.

    For samplers, text encoders, and decoding and encoding of VAEs.
    """
    try:
        key = named[node]
        with _lock:
            asked = _asked.get(key)
        if asked is None or not asked.stands():
            job = _job(graph, node, named)
            if job is None:
                return None
            asked = _begin(key, job)
        return _PENDING if asked is None else asked.answer.result(timeout=PATIENCE)
    except Late:
        return _PENDING
    except Exception:  # a foreign model may lack whatever is asked of it
        logger.debug("no prediction for node %s", node, exc_info=True)
        return None


def forget() -> None:
    """Know nothing any more."""
    with _lock:
        _asked.clear()


def _begin(key: str, job: Callable[[], Found | None]) -> _Asked | None:
    """``None`` = so much waits already that it has to be asked for again."""
    asked = _Asked()
    with _lock:
        if not _later.do(key, partial(asked.by, job)):
            return _asked.get(key)
        _asked[key] = asked
        _asked.move_to_end(key)
        while len(_asked) > MOST:
            _asked.popitem(last=False)
    return asked


def _job(graph: Graph, node: str, named: Mapping[str, str]) -> Callable[[], Found | None] | None:
    """What predicts the node; ``None`` = it is of another kind, or its model is not loaded."""
    linked = links(graph[node])
    inputs = graph[node]["inputs"]
    if "model" in linked and "latent_image" in linked:
        model = cached(linked["model"], named)
        if model is None or not hasattr(model, "model_size"):
            return None
        like = of_model(model)
        shape = latent_shape(graph, linked["latent_image"], named, like)
        if shape is None:
            return None
        guided = inputs.get("cfg") != 1
        work = _work(shape, like.scale, guided=guided)
        return partial(_predict, work, "sampling", _beside(graph, node, named), model=model)
    if "vae" in linked and ("samples" in linked or "pixels" in linked):
        vae = cached(linked["vae"], named)
        if vae is None or getattr(vae, "first_stage_model", None) is None:
            return None
        if "samples" in linked:
            like = of_vae(vae)
            scale, what = like.scale, "decoding"
            shape = latent_shape(graph, linked["samples"], named, like)
        else:
            scale, what = 1, "encoding"
            shape = _pixels(cached(linked["pixels"], named))
        return None if shape is None else partial(_predict, _work(shape, scale), what, vae=vae)
    if "clip" in linked and any(isinstance(it, str) for it in inputs.values()):
        clip = cached(linked["clip"], named)
        if clip is not None and hasattr(clip, "cond_stage_model"):
            return partial(_predict, Work(), "encoding text", clip=clip)
    return None


def _work(shape: list[int], scale: int, guided: bool = True) -> Work:
    frames = shape[2] if len(shape) == 5 else 1
    height, width = shape[-2] * scale, shape[-1] * scale
    return Work(
        width, height, batch=shape[0], guided=guided, frames=1 if frames < 2 else 4 * frames - 3
    )


def _pixels(image: Any) -> list[int] | None:
    """The shape of an image of the cache with its channels first."""
    if not isinstance(image, torch.Tensor) or image.ndim != 4:
        return None
    images, height, width, channels = image.shape
    return [images, channels, height, width]


def _beside(graph: Graph, sampler: str, named: Mapping[str, str]) -> Found:
    """Bytes of ControlNets that lie beside the model while it samples, and what is not counted."""
    found = beside(graph, sampler)
    count, said = 0, []
    for link in found.controls:
        control = cached(link, named)
        if control is not None:
            count += sum(int(patcher.model_size()) for patcher in control.get_models())
    if count:
        said.append(f"{format_bytes(count)} of ControlNets' weights")
    said += [f"what {name} computes is not counted" for name in found.classes]
    return count, ", ".join(said)


def _predict(work: Work, what: str, more: Found = (0, ""), **part: Any) -> Found | None:
    # Not before there is something to predict: they import what takes ComfyUI's start longer.
    from ..plan_loaded import loaded_subject
    from ..plan_present import turn_as_it_is

    name = str(snapshot(comfy.device()).name)
    profile = profiles.known(name, str(torch.__version__))
    factor = profile.workspace_factor
    try:
        subject = loaded_subject(work, **part, workspace_factor=factor)
        turn = turn_as_it_is(subject, what)
        peak = predict([turn], workspace_factor=factor).peak_allocated
    except LowtideError as error:
        logger.info("no prediction for %s: %s", what, error)
        return None
    text = f"predicted for {what}: {_parts(turn, peak)}"
    return peak + more[0], ", ".join(it for it in (text, more[1]) if it)


def _parts(turn: Turn, peak: int) -> str:
    if turn.on_host:
        return "it computes in host memory"
    weights = turn.layout.resident_bytes
    streamed = turn.layout.streamed_bytes
    text = f"{format_bytes(weights)} of weights, {format_bytes(max(0, peak - weights))} beside them"
    return text if not streamed else f"{text}, {format_bytes(streamed)} of weights streamed"

"""What nodes of a graph would take, from the headers of the files they load: a process of its own.

ComfyUI is imported for the CPU, and some of its functions are replaced for a moment: nothing for a
process that serves. ``plan_process`` starts this one, hands it a question and waits for the answer,
both one line of JSON. It ends with its parent: with the pipe the question came through.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import LowtideError
from ...levels import MemoryOptimizationConfig
from ...planner.cache import TraceCache
from ...planner.loader import Loader
from ...planner.predict import Turn, predict
from ...planner.work import Work
from ...profile import DeviceProfile
from ...stores import folder
from ..quiet import silence_libraries
from . import plan_models, plan_parts
from .plan_precision import Precision
from .plan_traces import ComfyTraces
from .plan_vae import DECODE_WORK

logger = logging.getLogger("lowtide")

PARTS = ("clip", "model", "vae")
"""In the order they work."""
_NICE = 10


def main(_arguments: list[str]) -> int:
    """Answer the question that comes by standard input; what is printed goes to stderr."""
    answers = os.dup(1)
    os.dup2(2, 1)
    question = json.loads(_line())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        with contextlib.suppress(OSError):
            os.nice(_NICE)
    silence_libraries()
    try:
        answer = answer_to(question)
    except LowtideError as error:
        answer = {"refused": str(error)}
    os.write(answers, json.dumps(answer).encode() + b"\n")
    os._exit(0)  # a thread that still reads would hold up an ordinary end


def answer_to(question: dict[str, Any]) -> dict[str, Any]:
    """Predictions for each of the question's configurations, and the parts that have none.

    ``levels``: for each configuration, by stage, bytes at the peak: ``alone`` with nothing else on
    the device, ``first`` in a run that begins with an empty one, ``whole`` in later runs; and of
    ``weights`` resident and ``streamed``. ``seconds`` are the planner's. ``left_out``: part ->
    reason.

    Args:
        question: as ``overlay.question`` makes it.

    Raises:
        LowtideError: nothing of it can be predicted.
    """
    device = question["device"]
    plan_models.prepare(Path(question["comfyui"]), Precision.from_dict(question["precision"]))
    left_out: dict[str, str] = {}
    profile = DeviceProfile.from_dict(device["profile"])
    costs = {"rates": profile, "workspace_factor": profile.workspace_factor}
    traces = ComfyTraces(
        plan_parts.load(question["parts"], left_out),
        Work(**question["work"]),
        TraceCache(folder() / "traces"),
        device["kernel"],
        profile.workspace_factor,
        Loader(**device["loader"]),
    )
    for part in PARTS:  # the text encoder first: without it the model is traced otherwise
        with plan_parts.leaving_out(part, left_out):
            if getattr(traces.models, part) is not None:
                traces.trace(part, MemoryOptimizationConfig())
        if part in left_out:
            setattr(traces.models, part, None)
    found = [
        _predicted(traces, MemoryOptimizationConfig.from_dict(values), question, costs)
        for values in question["configs"]
    ]
    return {"levels": found, "left_out": left_out}


def _predicted(
    traces: ComfyTraces,
    config: MemoryOptimizationConfig,
    question: dict[str, Any],
    costs: dict[str, Any],
) -> dict[str, Any]:
    turns = list(_turns(traces, config, question))
    if not turns:
        return {}
    lasting = not (config.cleanup == "always" and config.on_exit)
    coming = [_coming(turn, lasting or turn.name not in question["optimized"]) for turn in turns]
    whole = predict(turns, **costs).stages
    first = predict(coming, **costs).stages
    found = {}
    for turn in coming:
        alone = predict([turn], **costs).peak_allocated
        found[turn.stage] = {
            "alone": alone,
            "first": max(alone, first[turn.stage].peak_allocated_bytes),
            "whole": whole[turn.stage].peak_allocated_bytes,
            "seconds": whole[turn.stage].seconds,
            "weights": 0 if turn.on_host else turn.layout.resident_bytes,
            "streamed": 0 if turn.on_host else turn.layout.streamed_bytes,
        }
    return found


def _turns(
    traces: ComfyTraces, config: MemoryOptimizationConfig, question: dict[str, Any]
) -> Iterator[Turn]:
    """As ``ComfyTraces.turns``, each part under ``config`` only if that is applied to it."""
    for part in PARTS:
        if getattr(traces.models, part) is None:
            continue
        applied = config if part in question["optimized"] else MemoryOptimizationConfig()
        if part == "clip":
            turns = [traces.clip_turn(applied)] * (2 if traces.guided else 1)
        elif part == "model":
            turns = [traces.model_turn(applied)]
        else:
            turns = [traces.vae_turn(DECODE_WORK, applied)]
        for turn in turns:
            if part in question["on_host"]:
                off = replace(turn.placement, stays=False)
                turn = replace(turn, placement=off, on_host=True)
            yield turn


def _coming(turn: Turn, lasting: bool) -> Turn:
    """The turn in a run that begins with an empty device: what stays there comes when its turn
    does, and stays if it is ``lasting``."""
    if not turn.placement.stays:
        return turn
    return replace(turn, placement=replace(turn.placement, stays=False), lingers=lasting)


def _line() -> bytes:
    """Standard input up to the end of a line, and not a byte more."""
    found = b""
    while not found.endswith(b"\n"):
        part = os.read(0, 1)
        if not part:
            os._exit(1)
        found += part
    return found


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)

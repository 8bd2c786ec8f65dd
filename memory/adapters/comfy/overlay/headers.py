"""What nodes are predicted to take before their models are loaded, from the headers of the files.

A process of its own predicts, started in the background: whoever asks first is told that there will
be an answer. None is started while a prompt runs, or where the host is short of memory; one that is
there when a prompt begins is ended.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .... import foresight, override, stores
from ....errors import ConfigError, LowtideError
from ....fitting import Prediction, Stage
from ....foresight import Foreseen, TooSlow, Unpredicted
from ....history_rows import Key
from ....host import host_snapshot
from ....levels import MemoryOptimizationConfig, OptimizationLevel
from ....planner.api_graph import Graph, links
from ....planner.predict import DECODE, DENOISE, ENCODE
from ....planner.wired import JUDGED, samples
from ....stage_names import OF_PLANNER
from ....units import GIB, format_bytes
from .. import dynamic, plan_process, prompt_server
from . import tidy
from .answers import Found, Unknown
from .estimates import cached
from .question import STAGE, Question, question_of

logger = logging.getLogger("lowtide")

MOST = 100
"""Answers remembered; those asked for longest ago are forgotten first."""
AGAIN = 300.0
"""Seconds until a question that failed is tried again."""
LEAST = 2 * GIB
"""Bytes of host memory that must be available: the process takes about one GB."""

_WHAT = {ENCODE: "encoding text", DENOISE: "sampling", DECODE: "decoding"}
_PART = {stage: part for part, stage in STAGE.items()}
_PENDING = Unknown("it is being predicted from the headers of its files", pending=True)
_BUSY = Unknown("a prompt is running; it is predicted from the headers of its files after that")


@dataclass(frozen=True)
class _Kept:
    """An answer, or why there is none; ``at`` of the monotonic clock."""

    answer: dict[str, Any] | None
    failure: str
    at: float


class Predictions:
    """Answers to questions, each found once, one after the other in a thread.

    Args:
        ask: gives the answer to a question; its ``give_up`` is to be asked all the time.
    """

    def __init__(self, ask: Callable[[Question, Callable[[], bool]], dict[str, Any]]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._next: Question | None = None
        self._now: str | None = None
        self._thread: threading.Thread | None = None

    def look(self, question: Question) -> dict[str, Any] | Unknown:
        """The answer, if it is there; else why not, and whether it is on its way."""
        with self._lock:
            kept = self._kept.get(question.key)
            if kept is not None and kept.answer is not None:
                self._kept.move_to_end(question.key)
                return kept.answer
            if kept is not None and time.monotonic() - kept.at < AGAIN:
                return Unknown(kept.failure)
            if question.key == self._now:
                return _PENDING
            refusal = _not_now()
            if refusal is not None:
                return refusal
            self._next = question  # of several that wait only the latest is still looked at
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="lowtide-headers", daemon=True
                )
                self._thread.start()
            return _PENDING

    def forget(self) -> None:
        """Know nothing any more."""
        with self._lock:
            self._kept.clear()
            self._next = None

    def _work(self) -> None:
        while True:
            with self._lock:
                question, self._next = self._next, None
                self._now = None if question is None else question.key
                if question is None:
                    self._thread = None
                    return
            kept = self._answered(question)
            with self._lock:
                if kept is not None:
                    self._kept[question.key] = kept
                    self._kept.move_to_end(question.key)
                while len(self._kept) > MOST:
                    self._kept.popitem(last=False)

    def _answered(self, question: Question) -> _Kept | None:
        try:
            if _not_now() is not None:  # since it was asked
                return None
            answer = self._ask(question, prompt_server.running)
            return _Kept(answer, "", time.monotonic())
        except plan_process.GivenUp:
            return None
        except LowtideError as error:
            logger.info("nothing is predicted from the headers of a graph's files: %s", error)
            failure = str(error)
        except Exception:
            logger.exception("Lowtide could not predict from the headers of a graph's files")
            failure = "the prediction failed; ComfyUI's log says why"
        return _Kept(None, tidy.line(failure), time.monotonic())


def _ask(question: Question, give_up: Callable[[], bool]) -> dict[str, Any]:
    return plan_process.ask(question.asked, stores.folder(), give_up)


predictions = Predictions(_ask)
"""Of this process."""
_last = threading.local()


def predicted(graph: Graph, node: str, named: Mapping[str, str]) -> Found | Unknown | None:
    """Bytes at the node's peak in a run that begins with an empty device.

    For a sampler, its text encoders and its decoding, as long as ComfyUI's cache holds none of
    their models.
    """
    try:
        found = graph[node]
        stage = JUDGED.get(found["class_type"])
        if stage is None and not samples(found):
            return None
        question = _question(graph)
        if isinstance(question, str):
            return Unknown(question)
        return None if stage is None else _of_node(question, graph, node, named)
    except Exception:  # a graph may hold anything, and so may its files
        logger.debug("no prediction for node %s", node, exc_info=True)
        return None


def done() -> None:
    """The graph of this thread's check is not asked about any more."""
    _last.of = None


def _question(graph: Graph) -> Question | str:
    """What to ask of the graph, or why nothing; found out once a check."""
    forced = override.next_runs()
    last = getattr(_last, "of", None)
    if last is None or last[0] is not graph or last[1] != forced:
        found: Question | str
        try:
            found = question_of(graph, forced)
        except LowtideError as error:
            found = f"it cannot be predicted before its models are loaded: {error}"
        _last.of = last = (graph, forced, found)
    answer: Question | str = last[2]
    return tidy.line(answer) if isinstance(answer, str) else answer


def _of_node(
    question: Question, graph: Graph, node: str, named: Mapping[str, str]
) -> Found | Unknown | None:
    run = question.wired
    stage = run.nodes.get(node)
    reason = run.left_out.get(node) or question.left_out.get(stage or "")
    if stage is None or reason is not None:
        return None if reason is None else Unknown(tidy.line(reason))
    part = _PART[stage]
    if cached(links(graph[node])[part], named) is not None:
        return None
    answer = predictions.look(question)
    if isinstance(answer, Unknown):
        return answer
    if part in answer["left_out"]:
        return Unknown(tidy.line(answer["left_out"][part]))
    return _figure(question, answer, stage)


def _figure(question: Question, answer: Mapping[str, Any], stage: str) -> Found:
    """The peak with the models of earlier nodes beside it, if there is room; else without them."""
    from . import fit

    free = fit.available()
    config = _chosen(question, answer["levels"], free)
    at = answer["levels"][question.configs.index(config)][stage]
    alone, first = int(at["alone"]), int(at["first"])
    need = first if free is None or first <= free else alone
    weights, streamed = int(at["weights"]), int(at["streamed"])
    how = f"at level {config.level.value}"
    if config.budget_bytes is not None:
        how += f" within {format_bytes(config.budget_bytes)}"
    said = [
        f"predicted for {_WHAT[stage]} from the headers of its files, "
        f"{how if _PART[stage] in question.wired.optimized else 'without Lowtide'}: "
        f"{format_bytes(weights)} of weights, {format_bytes(max(0, alone - weights))} beside them"
    ]
    said += [f"{format_bytes(streamed)} of weights streamed"] if streamed else []
    said += [f"{format_bytes(need - alone)} of models used before"] if need > alone else []
    said += [f"{name} is not counted" for name in question.wired.uncounted]
    said += ["DynamicVRAM left out of account"] if dynamic.active() else []
    return need, tidy.line(", ".join(said))


def _chosen(
    question: Question, levels: list[dict[str, Any]], free: int | None
) -> MemoryOptimizationConfig:
    """What the next run's configuration comes to: where it follows what fits, by that."""
    config = question.config
    if config is None or config.requested_level is not OptimizationLevel.FASTEST:
        return question.configs[0]

    predicted_at = dict(zip((way.level for way in question.configs), levels, strict=True))

    def foresee(asked: MemoryOptimizationConfig) -> Foreseen:
        if asked.vae_tile_size != config.vae_tile_size:
            raise TooSlow("smaller tiles were not predicted")
        at, key = predicted_at[asked.level], Key("", "", "", "", 0)
        stages = (Stage(key, OF_PLANNER[it], at[it]["whole"], at[it]["seconds"]) for it in at)
        return Foreseen(asked, Prediction(asked.level.value, tuple(stages)))

    work = question.wired.work
    level = config.level
    with contextlib.suppress(Unpredicted, ConfigError):
        plain = config.replace(history=False)
        settled = foresight.settle(plain, foresee, free=free, size=(work.height, work.width))
        level = settled.config.level
    return next(way for way in question.configs if way.level is level)


def _not_now() -> Unknown | None:
    if prompt_server.running():
        return _BUSY
    available = host_snapshot().available
    if available < LEAST:
        return Unknown(
            f"predicting from the headers of its files takes {format_bytes(LEAST)} of RAM, and "
            f"{format_bytes(available)} are available; close other programs"
        )
    return None

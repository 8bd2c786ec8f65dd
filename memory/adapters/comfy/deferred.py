"""Work on models that somebody asks for at any time, done when it harms no prompt.

Always in the thread that runs the prompts: between two nodes, or where ComfyUI serves its own
``/free``, after a prompt or while none runs. For the latter its queue's ``get_flags`` is wrapped
while something waits, and put back at once when nothing does.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

from ...errors import LowtideError
from . import prompt_server
from .models import any_samples

logger = logging.getLogger("lowtide")

MOST = 16
"""Pieces of work that may wait."""

_FLAG = "lowtide"

Work = Callable[[], Any]


class Busy(LowtideError):
    """Too much waits already."""


_lock = threading.Lock()
_waiting: deque[tuple[Future[Any], Work]] = deque()
_undo: list[Callable[[], None]] = []


def submit(work: Work) -> Future[Any]:
    """Have ``work`` done at the next safe moment; its result or exception is the future's.

    Raises:
        Busy: as many pieces as may wait do so.
    """
    future: Future[Any] = Future()
    with _lock:
        if len(_waiting) >= MOST:
            raise Busy(f"{MOST} requests wait for the running prompt already; try again after it")
        _waiting.append((future, work))
        _wrap()
    nudge()
    return future


def nudge() -> None:
    """Wake the thread that runs the prompts, if it sleeps.

    Again does no harm, and is needed: a thread about to fall asleep misses it.
    """
    queue = getattr(prompt_server.instance(), "prompt_queue", None)
    if queue is not None and _waiting:
        queue.set_flag(_FLAG, True)


def between_nodes() -> None:
    """A node has ended: do what waits, unless a model is in the middle of a sampling."""
    if _waiting and not any_samples():
        run()


def run() -> None:
    """Do everything that waits. Only for the thread that runs the prompts. Never raises."""
    while True:
        with _lock:
            if not _waiting:
                _unwrap()
                return
            future, work = _waiting.popleft()
            if not _waiting:
                _unwrap()  # before anyone hears that it is done
        if future.set_running_or_notify_cancel():
            _do(future, work)
        del future, work


def _do(future: Future[Any], work: Work) -> None:
    try:
        with torch.inference_mode():  # weights are moved as while a prompt runs
            result = work()
        future.set_result(result)
    except LowtideError as refusal:
        future.set_exception(refusal)
    except BaseException as failure:  # what escapes would end the thread that runs the prompts
        logger.exception("Lowtide could not do what the overlay asked for")
        future.set_exception(LowtideError(f"it failed: {type(failure).__name__}"))


def forget() -> None:
    """Do nothing of what waits."""
    with _lock:
        while _waiting:
            _waiting.popleft()[0].cancel()
        _unwrap()


def _wrap() -> None:
    queue = getattr(prompt_server.instance(), "prompt_queue", None)
    if queue is None or _undo:
        return
    original = queue.get_flags

    def get_flags(reset: bool = True) -> Any:
        if reset:  # only the thread that runs the prompts takes the flags away
            run()
        return original(reset=reset)

    before = vars(queue).get("get_flags")
    queue.get_flags = get_flags

    def undo() -> None:
        if vars(queue).get("get_flags") is not get_flags:
            return  # another pack's around ours stays, and ours does nothing more
        if before is None:
            del queue.get_flags
        else:
            queue.get_flags = before

    _undo.append(undo)


def _unwrap() -> None:
    while _undo:
        _undo.pop()()

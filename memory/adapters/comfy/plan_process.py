"""Asks ``plan_files`` in a process of its own: never two at a time, in bounded time, for the CPU.

The process gets no part of this one's command line and sees no GPU. It has a low priority and ends
with this one, whatever ends it.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ...child import command
from ...errors import LowtideError
from ...stores import ENVIRONMENT

logger = logging.getLogger("lowtide")

SECONDS = 180.0
"""Longest it may take; some seconds are usual, most of them for importing ComfyUI."""
_LOOK = 0.1
"""Seconds between two looks whether it has ended."""
_LOG = 2000
"""Characters of its output that are kept when it fails."""
_MODULE = "memory.adapters.comfy.plan_files"
_HIDDEN = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
           "ASCEND_RT_VISIBLE_DEVICES")  # fmt: skip

_one = threading.Lock()
_running: set[subprocess.Popen[bytes]] = set()


class GivenUp(LowtideError):
    """It was ended before it answered, because its question can wait or is no longer asked."""


def ask(
    question: dict[str, Any],
    home: Path,
    give_up: Callable[[], bool],
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """The answer of ``plan_files.answer_to``.

    Args:
        home: Lowtide's own folder; traces are kept there.
        give_up: asked all the time; once it says so the process is ended.
        seconds: the time there is.

    Raises:
        GivenUp: ``give_up`` said so.
        LowtideError: there is no answer, and why.
    """
    with _one, tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as log:
        process = _start(home, answer, log)
        _running.add(process)
        try:
            code = _wait(process, question, give_up, time.monotonic() + seconds, seconds)
        finally:
            _end(process)
            _running.discard(process)
        return _read(answer, log, code)


def running() -> list[int]:
    """Ids of the processes there are: one, or none."""
    return [process.pid for process in tuple(_running)]


def _start(home: Path, answer: IO[bytes], log: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **dict.fromkeys(_HIDDEN, "")}
    environment |= {ENVIRONMENT: str(home), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    atexit.unregister(_end_all)
    atexit.register(_end_all)
    flags = 0
    for name in ("CREATE_NO_WINDOW", "BELOW_NORMAL_PRIORITY_CLASS"):
        flags |= getattr(subprocess, name, 0)
    try:
        return subprocess.Popen(
            command(_MODULE),
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=log,
            env=environment,
            creationflags=flags,
        )
    except OSError as error:
        raise LowtideError(f"the process that predicts cannot be started: {error}") from error


def _wait(
    process: subprocess.Popen[bytes],
    question: dict[str, Any],
    give_up: Callable[[], bool],
    until: float,
    seconds: float,
) -> int:
    """The exit code; its input stays open until then."""
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(question).encode() + b"\n")
        process.stdin.flush()
    except OSError:
        logger.debug("the process that predicts took no question", exc_info=True)
    while True:
        try:
            return process.wait(_LOOK)
        except subprocess.TimeoutExpired:
            if give_up():
                raise GivenUp("the prediction was given up") from None
            if time.monotonic() > until:
                raise LowtideError(
                    f"the files' headers were not predicted from within {seconds:g} seconds"
                ) from None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it at once, if it has not ended."""
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stdin is not None:
        try:
            process.stdin.close()
        except OSError:  # it ended with the question half read
            logger.debug("a pipe could not be closed", exc_info=True)


def _read(answer: IO[bytes], log: IO[bytes], code: int) -> dict[str, Any]:
    answer.seek(0)
    try:
        found = json.loads(answer.read())
        if not isinstance(found, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        log.seek(0)
        said = log.read().decode("utf-8", "replace")[-_LOG:]
        logger.warning("the process that predicts ended with %s; it said:\n%s", code, said)
        raise LowtideError(
            f"the process that predicts failed (code {code}); ComfyUI's log says why"
        ) from error
    if "refused" in found:
        raise LowtideError(str(found["refused"]))
    return found


def _end_all() -> None:
    for process in tuple(_running):
        process.kill()

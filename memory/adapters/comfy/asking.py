"""Asks the person at the browser whether a node that is out of memory may run again.

The question goes out as a message of ComfyUI's server, which ``web/rescue.js`` shows; the answer
comes back over a route of ours. It is repeated while it is open, for a page that is loaded anew.
Without a browser, or without an answer in time, it is a no.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from . import prompt_server
from .overlay import tidy

logger = logging.getLogger("lowtide")

EVENT = "lowtide.rescue"
SECONDS = 120.0
"""Longest the queue waits for an answer."""

AGAIN = 3.0
"""Seconds after which an open question is sent once more."""
GONE = 15.0
"""How long the tab that queued the prompt may be away, in seconds; the queue waits for it."""

_POLL = 0.2


@dataclass
class _Question:
    settled: threading.Event = field(default_factory=threading.Event)
    yes: bool = False


_open: dict[str, _Question] = {}


def answer(question: str, yes: bool) -> bool:
    """Settle an open question; False if there is none of that name, or no more."""
    found = _open.get(question)
    if found is None:
        return False
    found.yes = yes
    found.settled.set()
    return True


def ask(node: str, does: str, seconds: float = SECONDS) -> bool:
    """Wait for a yes or no about node ``node``; blocks, at most ``seconds``.

    A cancelled prompt is a no, and so is a tab that was closed.
    """
    client = prompt_server.tab()
    if client is None:
        logger.warning("node %s is out of memory, and no browser is there to be asked", node)
        return False
    name, question = uuid.uuid4().hex, _Question()
    _open[name] = question
    where = tidy.line(node)
    text = f"Node {where} is out of memory. Run it again with less? {does}"
    try:
        if _answered(question, client, {"question": name, "node": where, "text": text}, seconds):
            return question.yes
    finally:
        del _open[name]
        _send(client, {"question": name, "open": False})
    logger.warning("node %s is out of memory, and nobody said that it may run again", node)
    return False


def _answered(question: _Question, client: str, message: dict[str, Any], seconds: float) -> bool:
    """Whether an answer came before the time was over, the tab closed or the prompt cancelled."""
    import comfy.model_management as mm

    begun = there = time.monotonic()
    sent = float("-inf")
    while (now := time.monotonic()) < begun + seconds and not mm.processing_interrupted():
        if prompt_server.connected(client):
            there = now
        elif now > there + GONE:
            return False
        if now >= sent + AGAIN:
            _send(client, {**message, "open": True, "seconds": begun + seconds - now})
            sent = now
        if question.settled.wait(_POLL):
            return True
    return False


def _send(client: str, message: dict[str, Any]) -> None:
    with contextlib.suppress(RuntimeError):  # the server's loop is closed
        prompt_server.instance().send_sync(EVENT, message, client)

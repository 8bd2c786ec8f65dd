"""Asks the person at the browser whether a node that is out of memory may run again.

The question goes out as a message of ComfyUI's server, which ``web/rescue.js`` shows; the answer
comes back over a route of ours. Without a browser, or without an answer in time, it is a no.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from dataclasses import dataclass, field

from . import prompt_server

logger = logging.getLogger("lowtide")

EVENT = "lowtide.rescue"
SECONDS = 120.0
"""Longest the queue waits for an answer."""

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

    A cancelled prompt is a no.
    """
    import comfy.model_management as mm

    server = prompt_server.instance()
    if server is None or server.client_id is None:
        logger.warning("node %s is out of memory, and no browser is there to be asked", node)
        return False
    name, question = uuid.uuid4().hex, _Question()
    _open[name] = question
    try:
        text = f"Node {node} is out of memory. Run it again with less? {does}"
        message = {"question": name, "node": node, "text": text, "seconds": seconds}
        server.send_sync(EVENT, message, server.client_id)
        until = time.monotonic() + seconds
        while time.monotonic() < until and not mm.processing_interrupted():
            if question.settled.wait(_POLL):
                return question.yes
    finally:
        del _open[name]
    logger.warning("node %s is out of memory, and nobody said that it may run again", node)
    return False

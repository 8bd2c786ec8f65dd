"""Messages to the browser: each carries the server's boot and a number that grows by one."""

from __future__ import annotations

import logging
import threading
import uuid
from typing import Any

from .. import prompt_server

logger = logging.getLogger("lowtide")

BOOT = uuid.uuid4().hex[:16]
"""New at each start of the server."""

_lock = threading.Lock()
_count = [0]


def head() -> dict[str, Any]:
    """Boot and the number of the last message that was sent."""
    with _lock:
        return {"boot": BOOT, "seq": _count[0]}


def send(event: str, data: dict[str, Any], *, to_tab: bool = False) -> bool:
    """Send a message from any thread; False if nobody would get it, or the server is closing.

    Args:
        to_tab: to the tab that queued the running prompt only; to none if that is not known.
    """
    server = prompt_server.instance()
    client = prompt_server.tab() if to_tab else None
    if not prompt_server.watched() or (to_tab and client is None):
        return False
    with _lock:
        message = {"boot": BOOT, "seq": _count[0] + 1, **data}
        try:
            server.send_sync(event, message, client)
        except RuntimeError as failure:  # the server's loop is closed
            logger.debug("the overlay gets no more messages: %s", failure)
            return False
        _count[0] += 1
    return True

"""ComfyUI's server, as far as the overlay needs it: who is connected, what runs, how to send."""

from __future__ import annotations

import sys
from typing import Any

BACKLOG = 200
"""Messages waiting to be sent above which a browser reads too slowly to be sent more samples."""


def instance() -> Any:
    """ComfyUI's ``PromptServer``; ``None`` where there is none."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def watched() -> bool:
    """Whether a browser tab, or anyone else, is connected for messages."""
    return bool(getattr(instance(), "sockets", None))


def connected(client: str) -> bool:
    """Whether that tab is connected; True where the server does not say."""
    sockets = getattr(instance(), "sockets", None)
    return sockets is None or client in sockets


def running() -> bool:
    """Whether a prompt is being run."""
    queue = getattr(instance(), "prompt_queue", None)
    return bool(getattr(queue, "currently_running", None))


def waiting() -> bool:
    """Whether a prompt waits to be run."""
    queue = getattr(instance(), "prompt_queue", None)
    return bool(getattr(queue, "queue", None))


def busy() -> bool:
    """Whether a prompt is being run, or waits to be."""
    return running() or waiting()


def congested() -> bool:
    """Whether messages leave more slowly than they are made."""
    messages = getattr(instance(), "messages", None)
    return messages is not None and messages.qsize() > BACKLOG


def tab() -> str | None:
    """The client that queued the prompt which runs, if it said who it is."""
    found = getattr(instance(), "client_id", None)
    return found if isinstance(found, str) else None

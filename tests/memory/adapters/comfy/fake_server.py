"""A stand-in for ComfyUI's server, for tests of what is sent and asked for."""

from __future__ import annotations

import asyncio
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any


class FakeQueue:
    """The part of ComfyUI's prompt queue that is used, and a thread that serves its flags."""

    def __init__(self) -> None:
        self.currently_running: dict[int, object] = {}
        self.flags: dict[str, object] = {}
        self.changed = threading.Condition()
        self.taken: list[dict[str, object]] = []

    def set_flag(self, name: str, data: object) -> None:
        with self.changed:
            self.flags[name] = data
            self.changed.notify()

    def get_flags(self, reset: bool = True) -> dict[str, object]:
        with self.changed:
            found = dict(self.flags)
            if reset:
                self.flags = {}
                self.taken.append(found)
            return found


class FakeServer:
    """Connected sockets by name, and all that was sent."""

    def __init__(self, *tabs: str) -> None:
        self.sockets: dict[str, object] = {tab: object() for tab in tabs}
        self.client_id = tabs[0] if tabs else None
        self.last_node_id = self.last_prompt_id = None
        self.sockets_metadata: dict[str, object] = {}
        self.prompt_queue = FakeQueue()
        self.messages: asyncio.Queue[object] = asyncio.Queue()
        self.sent: list[tuple[str, dict[str, Any], str | None]] = []

    def send_sync(self, event: str, data: dict[str, Any], sid: str | None = None) -> None:
        self.sent.append((event, data, sid))

    def of(self, event: str) -> list[dict[str, Any]]:
        """The messages of one kind."""
        return [data for name, data, _ in self.sent if name == event]


def module(server: object) -> ModuleType:
    """What ``sys.modules["server"]`` is to be."""
    found = ModuleType("server")
    found.PromptServer = SimpleNamespace(instance=server)
    return found


class Installed:
    """Puts a server in ComfyUI's place for the length of a block."""

    def __init__(self, server: object) -> None:
        self.server = server

    def __enter__(self) -> Any:
        self.before = sys.modules.get("server")
        sys.modules["server"] = module(self.server)
        return self.server

    def __exit__(self, *exc: object) -> None:
        del sys.modules["server"]
        if self.before is not None:
            sys.modules["server"] = self.before

"""A tab as ComfyUI's server sees it: a WebSocket that collects messages; standard library only."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import struct
import threading
import time
from typing import Any

from .server import Server

_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10


class Tab:
    """Connected for the length of a block; ``messages`` are all that came, as they came."""

    def __init__(self, server: Server, name: str) -> None:
        self.name = name
        self.messages: list[dict[str, Any]] = []
        self._address = ("127.0.0.1", server._port)

    def __enter__(self) -> Tab:
        self._socket = socket.create_connection(self._address, timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET /ws?clientId={self.name} HTTP/1.1",
            f"Host: 127.0.0.1:{self._address[1]}",
            *("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
            f"Sec-WebSocket-Key: {key}",
        ]
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self._stream = self._socket.makefile("rb")
        if b"101" not in self._stream.readline():
            raise AssertionError("ComfyUI took no WebSocket")
        while self._stream.readline().strip():
            pass
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._stream.close()
        self._socket.close()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The data of the messages of one kind, so far."""
        return [it["data"] for it in list(self.messages) if it["type"] == kind]

    def wait(self, kind: str, count: int = 1, seconds: float = 20.0) -> list[dict[str, Any]]:
        """Returns once so many messages of a kind are there."""
        until = time.monotonic() + seconds
        while len(found := self.of(kind)) < count:
            if time.monotonic() > until:
                kinds = [it["type"] for it in self.messages]
                raise AssertionError(f"{len(found)} of {count} {kind} messages came: {kinds}")
            time.sleep(0.02)
        return found

    def _read(self) -> None:
        with contextlib.suppress(OSError, struct.error, ValueError):
            while True:
                first, second = self._stream.read(2)
                size = second & 127
                if size == 126:
                    (size,) = struct.unpack("!H", self._stream.read(2))
                elif size == 127:
                    (size,) = struct.unpack("!Q", self._stream.read(8))
                data = self._stream.read(size)
                kind = first & 15
                if kind == _CLOSE:
                    return
                if kind == _PING:
                    # Masked with zeros, as a client has to.
                    self._socket.sendall(bytes([128 | _PONG, 128 | size, 0, 0, 0, 0]) + data)
                elif kind == _TEXT:
                    self.messages.append(json.loads(data))

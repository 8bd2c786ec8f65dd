"""What the overlay asks of a running ComfyUI, for the tests."""

from __future__ import annotations

import json
import urllib.error
from typing import Any

import pytest

from .server import Graph, Server
from .websocket import Tab


def state(server: Server) -> dict[str, Any]:
    return server.get("/lowtide/state")


def ask(server: Server, name: str, **body: object) -> dict[str, Any]:
    return server.post(f"/lowtide/{name}", body)


def refusal(server: Server, name: str, body: object) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post(f"/lowtide/{name}", body)
    return refused.value.code, json.loads(refused.value.read())["error"]


def submit(server: Server, graph: Graph, tab: Tab) -> str:
    return server.post("/prompt", {"prompt": graph, "client_id": tab.name})["prompt_id"]


def status(
    server: Server, path: str, data: object, headers: dict[str, str], method: str = "POST"
) -> int:
    """The code a request is answered with, whatever it is."""
    try:
        server.fetch(path, None if method == "GET" else data, method, headers)
    except urllib.error.HTTPError as refused:
        return refused.code
    return 200

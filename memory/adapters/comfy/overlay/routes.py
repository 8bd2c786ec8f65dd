"""Lowtide's routes in ComfyUI's server: ``GET /lowtide/state``, and POSTs that change something.

ComfyUI's own middleware stands before them and refuses what another site's page sends. A POST must
say that it is JSON, which such a page cannot without being asked first; its size is bounded before
it is read, and its form checked before anything is done. An answer that is no success says why, as
``{"error": text}``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from .. import prompt_server

logger = logging.getLogger("lowtide")

PREFIX = "/lowtide/"
SMALL = 64 << 10
"""Most bytes of a request."""
LARGE = 4 << 20
"""Most bytes of one that brings a graph."""

_SOCKETS = ("/ws", "/api/ws")
_JSON = "application/json"

Reply = tuple[int, dict[str, Any]]


def open_routes() -> bool:
    """Let requests in; False where ComfyUI's server is not. To be called before it starts."""
    server = prompt_server.instance()
    if server is None:
        return False
    server.routes.get(PREFIX + "state")(_state)
    for name in ("free", "unload", "next", "fit", "history/reset", "rescue"):
        server.routes.post(PREFIX + name)(_posted(name))
    app = getattr(server, "app", None)
    if app is not None:
        app.on_response_prepare.append(_prepared)
    return True


async def reply_to(name: str, kind: str, read: Callable[[int], Awaitable[bytes | None]]) -> Reply:
    """The answer to a POST.

    Args:
        name: of the route, without its prefix.
        kind: the content type it came with.
        read: gives the body if it has at most so many bytes, else ``None``.
    """
    if kind != _JSON:
        return 415, {"error": f"send the request as {_JSON}"}
    most = LARGE if name == "fit" else SMALL
    try:
        body = await read(most)
    except Exception as failure:  # aiohttp's own, which differ by version
        logger.debug("the body of a request could not be read", exc_info=failure)
        return 400, {"error": "the body cannot be read: its encoding or its chunks are broken"}
    if body is None:
        return 413, {"error": f"the request is too large; at most {most >> 10} kB are read"}
    from . import actions

    return await _guarded(lambda: actions.act(name, body))


async def state() -> Reply:
    """The answer to a GET of the state."""
    from . import actions

    return await _guarded(actions.state)


async def _guarded(act: Callable[[], Awaitable[Reply]]) -> Reply:
    try:
        return await act()
    except asyncio.CancelledError:
        raise
    except Exception:
        logger.exception("Lowtide could not answer a request")
        return 500, {"error": "it failed; ComfyUI's log says why"}


async def _state(_request: Any) -> Any:
    return _response(await state())


def _posted(name: str) -> Callable[[Any], Awaitable[Any]]:
    async def handler(request: Any) -> Any:
        async def read(most: int) -> bytes | None:
            if (request.content_length or 0) > most:
                return None
            body = b""
            async for part in request.content.iter_chunked(SMALL):
                body += part
                if len(body) > most:
                    return None
            return body

        return _response(await reply_to(name, request.content_type, read))

    return handler


def _response(reply: Reply) -> Any:
    from aiohttp import web

    status, answer = reply
    return web.json_response(answer, status=status, headers={"Cache-Control": "no-store"})


async def _prepared(request: Any, _response: Any) -> None:
    """Somebody connects for messages; called for every answer of the server."""
    if request.path in _SOCKETS:
        try:
            from . import events

            events.connected()
        except Exception:
            logger.exception("Lowtide's overlay does not see who is connected")

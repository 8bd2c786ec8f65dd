"""What each request of the overlay does, and its answer.

The server's loop only waits here: reading the state and judging a graph take place in its threads,
giving memory back in the thread that runs the prompts. While a prompt runs that is not waited for,
and the receipt follows as a message.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from .... import backend, override
from ....adapters import comfy
from ....device import snapshot
from ....errors import LowtideError
from ....units import format_bytes, gb_to_bytes
from .. import asking, deferred, prompt_server
from . import events, fit, freeing, hub, requests
from . import state as states
from .routes import Reply

PATIENCE = 30.0
"""Longest an answer waits for work that no prompt holds up, in seconds."""

_NUDGE = 0.2
_QUEUED: Reply = (200, {"queued": True})
_LIMIT = asyncio.Semaphore(2)
"""Graphs and states that are worked on at once."""


async def state() -> Reply:
    """The state; whoever asks for it is sent samples from then on."""
    events.begin()
    async with _LIMIT:
        return 200, await asyncio.to_thread(states.read)


async def act(name: str, body: bytes) -> Reply:
    """The answer to a POST with that body."""
    kind, action = ACTIONS[name]
    try:
        return await action(requests.parse(kind, body))
    except requests.Malformed as error:
        return 400, {"error": str(error)}
    except freeing.Gone as error:
        return 404, {"error": str(error)}
    except (freeing.Stays, deferred.Busy) as error:
        return 409, {"error": str(error)}
    except LowtideError as error:
        return 400, {"error": str(error)}


async def _free(asked: requests.Free) -> Reply:
    events.begin()
    keep = list(asked.keep)
    return await _done(deferred.submit(lambda: freeing.free(asked.target, keep)))


async def _unload(asked: requests.Unload) -> Reply:
    events.begin()
    freeing.check(asked.id)
    return await _done(deferred.submit(lambda: freeing.unload(asked.id)))


async def _next(asked: requests.Next) -> Reply:
    if asked.budget_gb is not None:
        await asyncio.to_thread(_check_budget, asked.budget_gb)
    wanted = override.set_next(asked.level, asked.budget_gb).to_dict()
    hub.send(events.NEXT, {"next": wanted})
    return 200, {"next": wanted}


async def _fit(asked: requests.Fit) -> Reply:
    events.begin()
    async with _LIMIT:
        return 200, await asyncio.to_thread(fit.check, asked.prompt)


async def _forget(_asked: requests.Nothing) -> Reply:
    return 200, {"history": await asyncio.to_thread(states.forget)}


async def _answer(asked: requests.Answer) -> Reply:
    if not asking.answer(asked.question, asked.yes):
        return 404, {"error": "this question is open no more, or never was"}
    return 200, {}


async def _done(work: Future[Any]) -> Reply:
    """The receipt, if nothing holds the work up; else the word that it is going to be done."""
    until = time.monotonic() + PATIENCE
    waiting = asyncio.wrap_future(work)
    while not prompt_server.running() and time.monotonic() < until:
        done, _ = await asyncio.wait((waiting,), timeout=_NUDGE)
        if done:
            return 200, {"receipt": waiting.result()}
        deferred.nudge()
    if waiting.done():
        return 200, {"receipt": waiting.result()}
    waiting.add_done_callback(_settled)
    return _QUEUED


def _settled(waiting: asyncio.Future[Any]) -> None:
    """Nobody waits for the outcome any more: what failed was logged, what is gone needs no word."""
    if not waiting.cancelled():
        waiting.exception()


def _check_budget(budget_gb: float) -> None:
    if not math.isfinite(budget_gb) or gb_to_bytes(budget_gb) == 0:
        raise LowtideError(f"a budget of {budget_gb} GB is less than one byte; give more, or null")
    device = backend.device_of(comfy.device())
    total = snapshot(device).total if backend.is_initialized(device) else None
    if total is not None and gb_to_bytes(budget_gb) > total:
        raise LowtideError(
            f"a budget of {format_bytes(gb_to_bytes(budget_gb))} is more than {device} has; give "
            f"at most {format_bytes(total)}, or null for the selector's own"
        )


_Action = Callable[[Any], Awaitable[Reply]]

ACTIONS: dict[str, tuple[type[requests.Request], _Action]] = {
    "free": (requests.Free, _free),
    "unload": (requests.Unload, _unload),
    "next": (requests.Next, _next),
    "fit": (requests.Fit, _fit),
    "history/reset": (requests.Nothing, _forget),
    "rescue": (requests.Answer, _answer),
}

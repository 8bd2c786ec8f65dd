"""All the overlay needs to begin with: for a tab that comes late, or comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ... import override
from . import events, executor, hub, inventory, ledger

History = Callable[[], "dict[str, Any] | None"]

HISTORY: dict[str, History] = {}
"""The learning store's ``read`` and ``reset``, where there is one; each gives what it holds now."""


def read() -> dict[str, Any]:
    """The state now. Messages sent while it is put together have higher numbers than its own."""
    head = hub.head()
    return {
        **head,
        **events.sample(),
        "models": [row.to_dict() for row in inventory.rows()],
        "runs": [events.run_of(run) for run in executor.timelines()],
        "receipts": ledger.entries(),
        "next": override.next_runs().to_dict(),
        "history": history("read"),
    }


def history(what: str) -> dict[str, Any] | None:
    """What the learning store says; ``None`` without one."""
    found = HISTORY.get(what)
    return None if found is None else found()

"""All the overlay needs to begin with: for a tab that comes late, or comes back."""

from __future__ import annotations

from typing import Any

from .... import learning, override
from .. import executor
from . import events, hub, inventory, ledger, tidy


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
        "history": history(),
    }


def history() -> dict[str, Any]:
    """What was learned of earlier runs, the latest last; waits up to a second for queued rows."""
    found = learning.summary()
    rows = [
        {key: tidy.line(value) if isinstance(value, str) else value for key, value in row.items()}
        for row in reversed(found["runs"])
    ]
    return {
        "active": found["active"],
        "runs": found["rows"],
        "bytes": found["bytes"],
        "rows": rows,
    }


def forget() -> dict[str, Any]:
    """Empty the history; what is in it then."""
    learning.reset()
    return history()

"""The last receipts: what gave memory back, when, and on whose word."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import fields, replace
from typing import Any

from ....receipt import Receipt
from ....timeline import RunTimeline
from ....units import format_bytes
from . import hub, tidy

KEPT = 20

USER = "user"
BETWEEN = "between nodes"

EVENT = "lowtide.receipt"

_UNKNOWN = (*(it.name for it in fields(Receipt)), "freed", "freed_host")

_lock = threading.Lock()
_entries: deque[dict[str, Any]] = deque(maxlen=KEPT)


def add(receipt: Receipt, by: str) -> dict[str, Any]:
    """Keep a receipt and show it to whoever is connected; the entry, as plain JSON values."""
    plain = _tidied(receipt)
    text = tidy.text(plain.text())
    return _keep({"at": time.time(), "by": tidy.line(by), "text": text, **plain.to_dict()})


def add_run(timeline: RunTimeline) -> dict[str, Any] | None:
    """Sum up what left the device between the nodes of a run; ``None`` if nothing did.

    What nobody measured for all of it is ``None``: readings before and after, holders, the host.
    """
    if not timeline.releases:
        return None
    owners: dict[str, int] = {}
    for release in timeline.releases:
        owner = tidy.name(release.owner)
        owners[owner] = owners.get(owner, 0) + release.freed
    freed, seconds = sum(owners.values()), sum(it.seconds for it in timeline.releases)
    count = len(timeline.releases)
    lines = [f"{format_bytes(freed)} left the device in {count} step{'s'[: count > 1]} of a run"]
    lines += [f"  {owner}: {format_bytes(held)}" for owner, held in owners.items()]
    known = {"device": timeline.device, "by_owner": owners, "seconds": seconds, "freed": freed}
    return _keep(
        {"at": time.time(), "by": BETWEEN, "text": "\n".join(lines)}
        | dict.fromkeys(_UNKNOWN)
        | {"errors": []}
        | known
    )


def entries() -> list[dict[str, Any]]:
    """The last receipts, the latest last."""
    with _lock:
        return list(_entries)


def forget() -> None:
    """Keep none any more."""
    with _lock:
        _entries.clear()


def _keep(entry: dict[str, Any]) -> dict[str, Any]:
    with _lock:
        _entries.append(entry)
    hub.send(EVENT, {"receipt": entry})
    return entry


def _tidied(receipt: Receipt) -> Receipt:
    owners: dict[str, int] = {}
    for owner, held in receipt.by_owner.items():
        name = tidy.name(owner)
        owners[name] = owners.get(name, 0) + held
    return replace(
        receipt,
        by_owner=owners,
        errors=tuple(map(tidy.line, receipt.errors)),
        holders=tuple(replace(it, owner=tidy.name(it.owner)) for it in receipt.holders),
        host_holders=tuple(replace(it, owner=tidy.name(it.owner)) for it in receipt.host_holders),
    )

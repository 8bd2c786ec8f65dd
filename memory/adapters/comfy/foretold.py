"""What Optimize Pipeline foretold of the models it gave out, until they have run.

A prediction knows the model, the configuration and how much is worked on, and not yet the very
shape, nor whether LoRAs follow. Plain figures, bounded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from ...history_rows import Key
from ...learning import Expected
from ...run_key import PATCHED

MOST = 256

_lock = threading.Lock()
_known: OrderedDict[tuple[str, str, str, int, str], Expected] = OrderedDict()


def remember(key: Key, stage: str, expected: Expected) -> None:
    """Keep a prediction of a stage; the oldest goes where there are too many."""
    name = _name(key, stage)
    with _lock:
        _known.pop(name, None)
        _known[name] = expected
        while len(_known) > MOST:
            _known.popitem(last=False)


def of(key: Key, stage: str) -> Expected | None:
    """What was foretold of a stage, whatever the shape its size comes in."""
    with _lock:
        return _known.get(_name(key, stage))


def forget() -> None:
    """Nothing was foretold."""
    with _lock:
        _known.clear()


def _name(key: Key, stage: str) -> tuple[str, str, str, int, str]:
    return key.gpu, key.model, key.plan.removesuffix(f", {PATCHED}"), key.size, stage

"""What the person at the browser gives back by hand: everything, or one model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from .... import backend
from ....adapters import comfy
from ....cleanup import YOUNG, release
from ....errors import LowtideError
from ....handles import LoadedPipeline
from ....receipt import OTHERS, Reading, Receipt
from ....teardown import add_the_rest, teardown
from ..models import leave_device
from . import inventory, ledger, tidy


class Gone(LowtideError):
    """No such model is loaded, or no more."""


class Stays(LowtideError):
    """The model cannot leave its device."""


def free(target: str, keep: Iterable[str]) -> dict[str, Any]:
    """As the node Force Cleanup does; the receipt as it was logged.

    Only from the thread that runs the prompts.

    Args:
        target: vram, ram or both.
        keep: names of models that stay.
    """
    receipt = teardown(vram=target != "ram", ram=target != "vram", keep=keep)
    inventory.recount()
    return ledger.add(receipt, ledger.USER)


def check(model_id: str) -> None:
    """Raise unless a model of that id can be unloaded.

    Raises:
        Gone, Stays: as their names say.
    """
    for row in inventory.rows():
        if row.id == model_id:
            if not row.can_unload:
                raise Stays(f"{row.name} has nowhere to go: it computes where it is kept")
            return
    raise Gone("no loaded model has this id; it may have left by itself: fetch the state again")


def unload(model_id: str) -> dict[str, Any]:
    """Take one model off its device; the receipt as it was logged.

    Only from the thread that runs the prompts. The model stays in the host's memory as long as
    ComfyUI or a graph refers to it.

    Raises:
        Gone, Stays: as ``check``.
    """
    check(model_id)
    pipeline = inventory.pipeline_of(model_id)
    if pipeline is not None:
        receipt = _release_pipeline(pipeline)
    else:
        receipt = _release_patcher(inventory.patcher_of(model_id))
    inventory.recount()
    return ledger.add(receipt, ledger.USER)


def _release_pipeline(pipeline: LoadedPipeline) -> Receipt:
    receipt = pipeline.release(backend.device_of(comfy.device()))
    named = {f"{tidy.name(pipeline.name)}: {owner}": n for owner, n in receipt.by_owner.items()}
    return replace(receipt, by_owner=named)


def _release_patcher(patcher: Any) -> Receipt:
    device = backend.device_of(patcher.load_device)
    started, before = time.perf_counter(), Reading.of(device)
    with contextlib.suppress(RuntimeError):  # release() waits again, and reports it
        backend.synchronize(device)
    leave_device(patcher)
    held = (before.allocated or 0) - (backend.allocated(device) or 0)
    last = release(device=device, collect=YOUNG)
    after = Reading.of(device)
    owners = {tidy.name(type(patcher.model).__name__): held} if held > 0 else {}
    add_the_rest(owners, before, after, last.by_owner.get(OTHERS, 0))
    return replace(
        last,
        before=before,
        after=after,
        by_owner=owners,
        remaining=int(patcher.loaded_size()),
        seconds=time.perf_counter() - started,
    )

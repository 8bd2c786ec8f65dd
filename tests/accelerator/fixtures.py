"""pytest fixtures: ``accelerator`` is the simulated device, clean and at its defaults."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from . import activate
from .control import DEFAULT_CAPACITY, Accelerator

__all__ = ["accelerator"]


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """The handle: 8 GiB, one device, poisoned; ``accelerator(capacity="60M")`` reconfigures.

    The flavour is LOWTIDE_SIM (npu by default). Memory an earlier test still holds stays counted:
    compare with ``accelerator.allocated`` at the start, or free what you use.
    """
    handle = activate()
    _reset(handle)
    yield handle
    _reset(handle)


def _reset(handle: Accelerator) -> None:
    handle.clear_fault()
    gc.collect()
    for index in range(handle.device_count):
        handle.at(index).synchronize()
    handle.empty_cache()
    handle(
        capacity=DEFAULT_CAPACITY,
        devices=1,
        poison=True,
        keep_pages=False,
        overhead=0,
        hold_recorded=True,
    )
    handle.reset_peaks()
    handle.reset_counters()

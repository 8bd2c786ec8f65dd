"""A prompt as far as a model is asked whether it stays, for nodes that are called one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lowtide.memory.adapters.comfy import executor


@dataclass
class _Prompt:
    """A second text follows in it."""

    later: list[Any]
    executor, strangers = True, ()

    def needed(self, *, begun: bool = True) -> list[Any]:
        return self.later

    def note_turn(self, peak: int, beside: int) -> None:
        self.later = []


@contextlib.contextmanager
def followed(clip: Any) -> Iterator[None]:
    """Two texts are encoded as by two nodes of one prompt."""
    executor._state["prompt"] = None if clip is None else _Prompt([clip.patcher])
    try:
        yield
    finally:
        executor._state["prompt"] = None

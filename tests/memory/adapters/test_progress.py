"""Who hears of steps outside ComfyUI, and how a run is stopped."""

from __future__ import annotations

from typing import Any

import pytest
from lowtide.memory.adapters.generate import Request
from lowtide.memory.adapters.progress import Silent, listening, progress_for, stop
from lowtide.memory.errors import Interrupted

REQUEST = Request("a cat", "", 64, 64, 2, 5.0, 3, 1)


class Listener(Silent):
    """Hears."""


def hearing() -> Any:
    return progress_for(object(), REQUEST)


def test_nobody_listens_unless_asked_to() -> None:
    assert type(hearing()) is Silent
    hearing().step(1, 2, None)
    hearing().check()


def test_the_innermost_listener_hears_and_goes_with_its_block() -> None:
    outer, inner = Listener(), Listener()
    with listening(outer):
        with listening(inner):
            assert hearing() is inner
        assert hearing() is outer
    assert type(hearing()) is Silent


def test_a_listener_goes_when_its_block_raises() -> None:
    with pytest.raises(KeyError), listening(Listener()):
        raise KeyError
    assert type(hearing()) is Silent


def test_stopping_says_why_and_that_memory_is_back() -> None:
    with pytest.raises(Interrupted, match=r"^enough; memory is back where it was before$"):
        stop("enough")

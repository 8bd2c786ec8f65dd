"""Who hears of a run's steps, and who may stop it.

Inside ComfyUI that is its progress bar and its cancel button; elsewhere whoever called
``listening``, for example the bench.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import Interrupted
from . import comfy

if TYPE_CHECKING:
    from .generate import Request


class Progress(Protocol):
    """Told after every step."""

    def step(self, done: int, total: int, latents: Any) -> None:
        """``done`` of ``total`` steps are over; ``latents`` as the pipeline holds them, or None."""

    def check(self) -> None:
        """Raise if the run should stop."""


class Silent:
    """Tells nobody and never stops."""

    def step(self, done: int, total: int, latents: Any) -> None:
        """Nothing."""

    def check(self) -> None:
        """Nothing."""


_listeners: list[Progress] = []


@contextmanager
def listening(progress: Progress) -> Iterator[None]:
    """Send the steps of every run in the block to ``progress``."""
    _listeners.append(progress)
    try:
        yield
    finally:
        _listeners.remove(progress)


def progress_for(pipeline: Any, request: Request) -> Progress:
    """Where the steps of this run go."""
    if _listeners:
        return _listeners[-1]
    if comfy.present():
        from .comfy.progress import ComfyProgress

        return ComfyProgress(pipeline, request.steps, request.width, request.height)
    return Silent()


def stop(reason: str = "the run was stopped") -> None:
    """Raise what a ``Progress.check`` outside ComfyUI raises to end a run."""
    raise Interrupted(f"{reason}; memory is back where it was before")

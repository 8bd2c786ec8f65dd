"""A handler of ComfyUI's progress registry that passes on what the prompt's nodes do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_NAME = "lowtide"


def listen(
    guarded: Callable[[Callable[[], object]], None],
    started: Callable[[str], object],
    stepped: Callable[[str], object],
    finished: Callable[[str, str], object],
) -> Any:
    """Register a handler with the prompt ComfyUI has just begun; the registry it is in.

    Args:
        guarded: runs each of the others so that nothing escapes into ComfyUI.
        started, stepped: are given the node's id.
        finished: is given the node's id and the prompt's; for cached nodes, too.
    """
    from comfy_execution.progress import add_progress_handler, get_progress_state

    add_progress_handler(_handler_class()(guarded, started, stepped, finished))
    return get_progress_state()


@functools.cache
def _handler_class() -> Any:
    """Made once: a class is a cycle, and one per prompt would keep its prompt until collected."""
    from comfy_execution.progress import ProgressHandler

    class Handler(ProgressHandler):
        """Knows no prompt, only whom to tell."""

        def __init__(self, guarded: Any, started: Any, stepped: Any, finished: Any) -> None:
            super().__init__(_NAME)
            self._guarded = guarded
            self._started, self._stepped, self._finished = started, stepped, finished

        def start_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
            self._guarded(lambda: self._started(node_id))

        def update_handler(self, node_id: str, *args: Any, **kwargs: Any) -> None:
            self._guarded(lambda: self._stepped(node_id))

        def finish_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
            self._guarded(lambda: self._finished(node_id, prompt_id))

    return Handler

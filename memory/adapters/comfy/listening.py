"""A handler of ComfyUI's progress registry that passes on what the prompt's nodes do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_NAME = "lowtide"


def listen(
    guarded: Callable[[Callable[[], object]], None],
    started: Callable[[str], object],
    stepped: Callable[[str], object],
    finished: Callable[[str, str], object],
) -> Any:
    """Register a handler with the prompt ComfyUI has just begun; the registry it landed in.

    Args:
        guarded: runs each of the others so that nothing escapes into ComfyUI.
        started, stepped: are given the node's id.
        finished: is given the node's id and the prompt's; for cached nodes, too.
    """
    from comfy_execution.progress import ProgressHandler, add_progress_handler

    found: list[Any] = []

    class Handler(ProgressHandler):
        """Knows its prompt by what it was given only."""

        def __init__(self) -> None:
            super().__init__(_NAME)

        def set_registry(self, registry: Any) -> None:
            found.append(registry)

        def start_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
            guarded(lambda: started(node_id))

        def update_handler(self, node_id: str, *args: Any, **kwargs: Any) -> None:
            guarded(lambda: stepped(node_id))

        def finish_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
            guarded(lambda: finished(node_id, prompt_id))

    add_progress_handler(Handler())
    return found.pop()

"""A prompt that is over, as ComfyUI tells of it, and what went wrong before it could be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class HostError(RuntimeError):
    """The server did not boot, died, or answered nothing in time."""


class Refused(RuntimeError):
    """ComfyUI refused a prompt before running it; ``str()`` is its JSON answer."""


@dataclass(frozen=True)
class Run:
    """One finished prompt, as ``/history`` tells it."""

    prompt_id: str
    status: dict[str, Any]
    outputs: dict[str, dict[str, Any]]

    @property
    def succeeded(self) -> bool:
        return self.status["status_str"] == "success"

    def messages(self, event: str) -> list[dict[str, Any]]:
        return [data for name, data in self.status["messages"] if name == event]

    @property
    def error(self) -> str:
        """``type: message`` of the node that failed, empty where none did."""
        return "\n".join(
            f"{m['exception_type']}: {m['exception_message']}"
            for m in self.messages("execution_error")
        )

    @property
    def cached(self) -> set[str]:
        """Ids of the nodes whose output came from the cache."""
        return {node for m in self.messages("execution_cached") for node in m["nodes"]}

    def text(self, node_id: str) -> str:
        """What a node shows as text in the UI."""
        return "\n".join(str(part) for part in self.outputs.get(node_id, {}).get("text", ()))

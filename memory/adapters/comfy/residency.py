"""What a part of a graph may keep on the device: carried by a clone of its patcher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ATTACHMENT = "lowtide"


@dataclass(frozen=True)
class Residency:
    """What a clone may keep on the device. Immutable, for clones of the clone share it.

    Attributes:
        cap: most bytes of weights resident; ``None`` leaves it to the core.
        by_free: narrow ``cap`` at every load to what the device has free.
        budget: most bytes allocated on the device, activations included; narrows ``cap``.
        streaming: bytes a streamed leaf needs on the device while it computes.
        activations: bytes set aside for them where nothing was measured.
        leave: take the model off the device once it has sampled.
        stays: let it stay after its turn as far as the next one has room beside it.
        turn: of a prompt's stages the one it has: text encoder, model (or control net), vae.
        cleanup: when the model leaves the device after a run: off, pressure, always.
        plan: the name of the configuration it came from, for the history.
    """

    cap: int | None = None
    budget: int | None = None
    streaming: int = 0
    activations: int = 0
    cleanup: str = "off"
    by_free: bool = False
    leave: bool = False
    plan: str = ""
    stays: bool = False
    turn: str = "model"

    def weights(self, activations: int | None) -> int | None:
        """Most bytes of weights resident beside ``activations``; ``None`` = no cap."""
        if self.budget is None:
            return self.cap
        beside = self.activations if activations is None else activations
        room = max(0, self.budget - self.streaming - beside)
        return room if self.cap is None else min(room, self.cap)


def residency_of(patcher: Any) -> Residency | None:
    """What ``with_residency`` set on the patcher or on one it was cloned from."""
    found = patcher.attachments.get(ATTACHMENT) if hasattr(patcher, "attachments") else None
    return found if isinstance(found, Residency) else None

"""The patchers that are on the device together while a model samples: its own and ControlNets'."""

from __future__ import annotations

from typing import Any

from .limits import padding, streaming_bytes
from .patchers import Budgeted
from .residency import residency_of


def capped(patcher: Any, controls: list[Any]) -> list[Any]:
    """The patcher and those of its ControlNets whose weights count with it."""
    return [patcher, *(part for part in controls if isinstance(part, Budgeted))]


def streaming_of(part: Any) -> int:
    """As now, with LoRAs plugged in later; what the rest of Lowtide holds was noted before."""
    residency = residency_of(part)
    return max(streaming_bytes(part), 0 if residency is None else residency.streaming)


def share_out(parts: list[Any], room: int) -> None:
    """Each part its share by size."""
    total = sum(int(part.model_size()) for part in parts) or 1
    for part in parts:
        part.lowtide_room = max(0, room) * int(part.model_size()) // total


def can_move(part: Any) -> bool:
    """Whether the part is on the device as it is, and no hooks keep weights of their own."""
    same = part.model.current_weight_patches_uuid == part.patches_uuid
    return bool(same and not part.hook_patches and part.load_device != part.offload_device)


def need_of(parts: list[Any], budget: int, room: int) -> int:
    """Bytes that the parts take of a budget that has ``room`` for their weights."""
    return budget - room + min(room, sum(int(part.model_size()) + padding(part) for part in parts))

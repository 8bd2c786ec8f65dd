"""How much of the device a VAE's work may take: what a budget leaves, or what is free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ... import backend
from . import staying
from .models import loaded_bytes, loaded_models
from .residency import residency_of


@dataclass(frozen=True)
class Room:
    """Bytes on the device beside the VAE's weights.

    Attributes:
        most: with every other model off the device; ``None`` = not known, or there is no device.
        spare: with the others where they are.
    """

    most: int | None
    spare: int

    def staging(self, strips: int, allowed: int | None) -> int:
        """Bytes of maps that may lie there beside ``strips``, without another model leaving.

        Where others have to leave for the strips' sake they leave together, and there is more.
        ``allowed`` bounds it; ``None`` = no bound but the room.
        """
        if self.most is None:
            return 0
        spare = self.spare
        if allowed is None and spare < strips:
            spare = self.most
        left = max(0, spare - strips)
        return left if allowed is None else min(left, allowed)


def room_of(vae: Any, budget: int | None, *, settled: bool = False) -> Room:
    """The room a VAE has, under a budget or in what the device has free.

    ``settled``: what was to leave the device has left it.
    """
    if budget is None:
        return _free(vae)
    most = max(0, budget - weights_of(vae))
    held = backend.allocated(backend.device_of(vae.patcher.load_device))
    away = loaded_bytes(vae.patcher) + staying.bytes_beside([vae.patcher])  # it gives way in part
    others = 0 if held is None else max(0, held - away)
    spare = max(0, most - others)
    return Room(spare if settled else most, spare)


def weights_of(vae: Any) -> int:
    """Bytes of the VAE's weights on the device while it works under a budget.

    All of them; or, where its patcher streams them, those of the layers on their way. Each is used
    once, so that nothing is gained by keeping them.
    """
    residency = residency_of(vae.patcher)
    if residency is not None and residency.budget is not None:
        return int(residency.streaming)
    return int(vae.patcher.model_size())


def _free(vae: Any) -> Room:
    import comfy.model_management as mm

    device = vae.patcher.load_device
    if mm.is_device_cpu(device):
        return Room(None, 0)
    resident = loaded_bytes(vae.patcher)
    arriving = max(0, int(vae.patcher.model_size()) - resident)
    free = int(mm.get_free_memory(device)) - arriving - int(mm.extra_reserved_memory())
    loaded = sum(model.on_device for model in loaded_models() if model.device == str(device))
    return Room(max(0, free + loaded - resident), max(0, free))

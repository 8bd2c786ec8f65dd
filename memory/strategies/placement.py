"""Placement: the whole pipeline on one device, and how to put a pipeline back where it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .base import Applied, Outcome, Undo, undo_all
from .snapshot import Snapshot

NAME = "placement"
_PIPELINE_STATE = ("_all_hooks", "_offload_gpu_id", "_offload_device")


@dataclass(frozen=True)
class Placement:
    """Where the weights are to be; ``only`` = names of components, None = all."""

    device: torch.device
    only: tuple[str, ...] | None = None


def apply(config: Placement, pipe: Any) -> list[Outcome]:
    """Put the components on the device, to stay."""
    from ..adapters.diffusers import modules_of

    parts = modules_of(pipe)
    names = tuple(parts) if config.only is None else config.only
    outcomes: list[Outcome] = []
    undos: list[Undo] = []
    try:
        for name in names:
            snapshot = Snapshot(parts[name])
            undos.append(snapshot.restore)
            parts[name].to(config.device)
            outcomes.append(Applied(NAME, name, f"on {config.device}", snapshot.restore))
    except BaseException:
        undo_all(reversed(undos))
        raise
    return outcomes


def keep_pipeline_state(pipe: Any, device: torch.device) -> Undo:
    """Snapshot a pipeline before offload hooks come; the undo removes them and restores it.

    The components of now are meant, even if the pipeline has others by then. Also makes diffusers
    use exactly ``device``: it takes index 0 for "as last time".
    """
    from ..adapters.diffusers import modules_of, remove_offload

    parts = list(modules_of(pipe).values())
    snapshots = [Snapshot(part) for part in parts]
    own = vars(pipe)
    state = {name: own[name] for name in _PIPELINE_STATE if name in own}
    own.pop("_offload_gpu_id", None)

    def restore_attributes() -> None:
        for name in _PIPELINE_STATE:
            own.pop(name, None)
        own.update(state)

    def undo() -> None:
        steps: list[Undo] = [lambda: remove_offload(pipe, parts)]
        steps += [snapshot.restore for snapshot in snapshots]
        undo_all([*steps, restore_attributes])

    return undo

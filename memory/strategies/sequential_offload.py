"""Sequential offload: every leaf module's weights come to the device for its own forward only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .base import Applied, Outcome, with_the_first
from .placement import keep_pipeline_state

NAME = "sequential offload"


@dataclass(frozen=True)
class SequentialOffload:
    """The device the leaves come to; ``only`` = names of components, None = all."""

    device: torch.device
    only: tuple[str, ...] | None = None


def apply(config: SequentialOffload, pipe: Any) -> list[Outcome]:
    """Enable accelerate's offload of leaves on the whole pipeline, or on some components."""
    from ..adapters.diffusers import modules_of, offload_leaves

    parts = modules_of(pipe)
    names = tuple(parts) if config.only is None else config.only
    undo = keep_pipeline_state(pipe, config.device)
    try:
        if config.only is None:
            pipe.enable_sequential_cpu_offload(device=config.device)
        else:
            for name in names:
                offload_leaves(parts[name], config.device)
    except BaseException:
        undo()
        raise
    staying = set(pipe._exclude_from_cpu_offload) if config.only is None else set()
    pending = iter((undo,))
    return [
        Applied(
            NAME,
            name,
            "stays on the device: its pipeline excludes it"
            if name in staying
            else f"leaf by leaf to {config.device}",
            next(pending, with_the_first),
        )
        for name in names
    ]

"""Component offload: one component at a time is on the device, the others wait in host memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .base import Applied, Outcome, Skipped, with_the_first
from .placement import keep_pipeline_state

NAME = "component offload"


@dataclass(frozen=True)
class ComponentOffload:
    """The device the components take turns on."""

    device: torch.device


def apply(config: ComponentOffload, pipe: Any) -> list[Outcome]:
    """Enable diffusers' model offload.

    Components called outside the pipeline's order (ControlNets) stay until the end of a call.
    """
    from ..adapters.diffusers import modules_of

    parts = modules_of(pipe)
    if pipe.model_cpu_offload_seq is None:
        reason = "this pipeline names no order for its components; use offload='group'"
        return [Skipped(NAME, name, reason) for name in parts]
    undo = keep_pipeline_state(pipe, config.device)
    try:
        pipe.enable_model_cpu_offload(device=config.device)
    except BaseException:
        undo()
        raise
    staying = set(pipe._exclude_from_cpu_offload)
    pending = iter((undo,))
    return [
        Applied(
            NAME,
            name,
            "stays on the device: its pipeline excludes it"
            if name in staying
            else f"on {config.device} for its turn",
            next(pending, with_the_first),
        )
        for name in parts
    ]

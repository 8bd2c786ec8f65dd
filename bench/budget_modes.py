"""diffusers' own ways to place a pipeline, each with what takes it back: the rivals of a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..memory.strategies.base import Undo
from ..memory.strategies.placement import keep_pipeline_state

Setup = Callable[[Any, torch.device], Undo]


def _restored(enable: Callable[[Any, torch.device], None]) -> Setup:
    def setup(pipe: Any, device: torch.device) -> Undo:
        undo = keep_pipeline_state(pipe, device)
        enable(pipe, device)
        return undo

    return setup


def _whole(pipe: Any, device: torch.device) -> None:
    pipe.to(device)


def _model(pipe: Any, device: torch.device) -> None:
    pipe.enable_model_cpu_offload(device=device)


def _sequential(pipe: Any, device: torch.device) -> None:
    pipe.enable_sequential_cpu_offload(device=device)


def _groups(kind: str, stream: bool) -> Callable[[Any, torch.device], None]:
    def enable(pipe: Any, device: torch.device) -> None:
        pipe.enable_group_offload(
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type=kind,
            num_blocks_per_group=1 if kind == "block_level" else None,
            use_stream=stream,
        )

    return enable


MODES: dict[str, Setup] = {
    "none": _restored(_whole),
    "model offload": _restored(_model),
    "sequential": _restored(_sequential),
    "block groups": _restored(_groups("block_level", False)),
    "leaf groups": _restored(_groups("leaf_level", False)),
    "leaf groups, stream": _restored(_groups("leaf_level", True)),
}
"""``none`` first: its image is the one to be kept."""

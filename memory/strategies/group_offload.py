"""Group offload: leaves or blocks come to the device for their turn, the next one meanwhile.

diffusers traces the order of the groups in the first forward and prefetches along it from the
second on. Here the prefetch is kept from raising the peak (see ``diffusers_prefetch``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..backend import supports_streams
from ..errors import ConfigError
from .base import Applied, Outcome, Skipped, Undo, undo_all, with_the_first
from .placement import keep_pipeline_state

NAME = "group offload"


@dataclass(frozen=True)
class GroupOffload:
    """``use_stream`` None = where the device has them; ``only`` = components, None = all."""

    device: torch.device
    offload_type: str = "leaf_level"
    blocks: int = 1
    use_stream: bool | None = None
    record_stream: bool = False
    low_cpu_mem: bool = False
    only: tuple[str, ...] | None = None

    @property
    def streams(self) -> bool:
        """Whether copies run on a stream of their own.

        Raises:
            ConfigError: streams were asked for on a device without them.
        """
        if self.use_stream is False:
            return False
        possible = supports_streams(self.device) and self.blocks == 1
        if self.use_stream and not possible:
            raise ConfigError(
                f"`use_stream` = True, but {self.device} has no streams for copies; "
                "set use_stream=None to use them where they exist"
            )
        return possible


def apply(config: GroupOffload, pipe: Any) -> list[Outcome]:
    """Let diffusers stream every component, or some, in groups."""
    from ..adapters.diffusers import modules_of

    parts = modules_of(pipe)
    names = tuple(parts) if config.only is None else config.only
    streams = config.streams
    undos: list[Undo] = [keep_pipeline_state(pipe, config.device)]
    outcomes: list[Outcome] = []
    try:
        for name in names:
            detail = _apply_one(config, parts[name], streams, undos)
            outcomes.append(Applied(NAME, name, detail, with_the_first))
    except BaseException:
        undo_all(reversed(undos))
        raise
    for asked, setting in (
        (config.record_stream, "record_stream"),
        (config.low_cpu_mem, "low_cpu_mem"),
    ):
        if asked and not streams:
            reason = f"{config.device} has no streams for copies: nothing to do for it"
            outcomes.append(Skipped(setting, "pipeline", reason))
    if outcomes and isinstance(outcomes[0], Applied):
        first = outcomes[0]
        outcomes[0] = Applied(
            first.strategy, first.component, first.detail, lambda: undo_all(reversed(undos))
        )
    return outcomes


def _apply_one(
    config: GroupOffload, component: torch.nn.Module, streams: bool, undos: list[Undo]
) -> str:
    from ..adapters.diffusers import apply_group_offload, supports_group_offload
    from ..adapters.diffusers_prefetch import limit_prefetch
    from ..adapters.diffusers_retype import follow_casts

    if not supports_group_offload(component):
        component.to(config.device)
        return "stays on the device: its class does not support group offload"
    # An autoencoder has few blocks, and its layers may be called one by one (exact tiling).
    by_leaf = config.offload_type == "leaf_level" or hasattr(component, "decode")
    for part in _roots(component, config.device):
        apply_group_offload(
            part,
            config.device,
            offload_type="leaf_level" if by_leaf else "block_level",
            blocks=config.blocks,
            stream=streams,
            record_stream=config.record_stream and streams,
            low_cpu_mem=config.low_cpu_mem and streams,
        )
        if streams:
            undos.append(limit_prefetch(part, config.device))
    if streams:
        undos.append(follow_casts(component))
    unit = "leaf" if by_leaf else f"{config.blocks} block(s)"
    return f"{unit} by {unit} to {config.device}" + (
        ", the next one prefetched on a stream where that does not raise the peak"
        if streams
        else ""
    )


def _roots(component: torch.nn.Module, device: torch.device) -> Iterator[torch.nn.Module]:
    """The modules to offload on their own: those whose ``forward`` runs.

    An autoencoder is entered by ``decode`` and ``encode``: hooks on itself would never fire, so
    that nothing was prefetched and the trace of the order grew with every image.
    """
    if not hasattr(component, "decode"):
        yield component
        return
    for tensor in (*component._parameters.values(), *component._buffers.values()):
        if tensor is not None:
            tensor.data = tensor.data.to(device)
    yield from component.children()

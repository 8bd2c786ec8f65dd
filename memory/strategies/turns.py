"""Turns: a component's weights come to the device when it begins to work, and leave for the next.

What a plan streams is moved by diffusers' and accelerate's own hooks, leaf by leaf; the rest comes
once a turn. Nothing is copied back: the host's tensors are kept and take their place again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..backend import supports_streams
from ..evict import LEAVE
from ..units import format_bytes
from .base import (
    Applied,
    Outcome,
    Undo,
    override,
    then,
    undo_all,
    with_the_first,
    wrap_method,
)
from .placement import keep_pipeline_state
from .snapshot import tensors_of

NAME = "planned placement"
_END = "maybe_free_model_hooks"
"""What every diffusers pipeline calls when its run is over."""


@dataclass(frozen=True)
class Share:
    """What of a component is on the device in its turn.

    Attributes:
        resident: dotted paths of the modules whose weights are, the others being streamed;
            ``None`` = all.
        stays: it stays from run to run.
        beside: components that need not leave for it.
    """

    resident: frozenset[str] | None = None
    stays: bool = False
    beside: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Turns:
    """``shares`` by component; components without one come whole for their turn."""

    device: torch.device
    shares: dict[str, Share]
    only: tuple[str, ...] | None = None


def apply(config: Turns, pipe: Any) -> list[Outcome]:
    """Let the components of ``pipe``, or those of ``only``, take turns on the device."""
    from ..adapters.diffusers import modules_of
    from ..adapters.diffusers_turns import announce

    parts = {
        name: part
        for name, part in modules_of(pipe).items()
        if config.only is None or name in config.only
    }
    undos: list[Undo] = [keep_pipeline_state(pipe, config.device)]
    stage = _Stage(config.device)
    undos.append(stage.clear)
    outcomes: list[Outcome] = []
    pending = iter((lambda: undo_all(reversed(undos)),))
    try:
        for name, part in parts.items():
            share = config.shares.get(name, Share())
            part.to("cpu")
            held, detail = _stream(part, share, config.device, undos)
            stage.add(name, held, share)
            undos += announce(part, config.device, _entry(stage, name, part, held))
            undos.append(override(part, LEAVE, partial(stage.leave, name)))
            outcomes.append(Applied(NAME, name, detail, next(pending, with_the_first)))
        if hasattr(pipe, _END):
            undos.append(wrap_method(pipe, _END, then(stage.end)))
        for name in parts:
            if config.shares.get(name, Share()).stays:
                stage.come(name)
    except BaseException:
        undo_all(reversed(undos))
        raise
    return outcomes


def _stream(
    part: torch.nn.Module, share: Share, device: torch.device, undos: list[Undo]
) -> tuple[list[torch.Tensor], str]:
    """Put hooks on what is streamed; the tensors of the rest, and a sentence."""
    every = list(tensors_of(part))
    if share.resident is None:
        size = sum(tensor.nbytes for tensor in every)
        where = "stays on" if share.stays else "for its turn on"
        return every, f"{where} {device} ({format_bytes(size)})"
    from ..adapters.diffusers import offload_leaves
    from ..adapters.diffusers_turns import stream_leaves

    if hasattr(part, "decode"):
        # Its layers may be called one by one (exact tiling), which containers' hooks would miss.
        if not share.resident:
            offload_leaves(part, device)
            return [], f"leaf by leaf to {device}"
        held = [t for path in share.resident for t in tensors_of(part.get_submodule(path))]
        size = sum(tensor.nbytes for tensor in held)
        return held, f"what decodes comes for its turn to {device} ({format_bytes(size)})"
    held = stream_leaves(part, device, share.resident, undos, streams=supports_streams(device))
    size = sum(tensor.nbytes for tensor in held)
    rest = sum(tensor.nbytes for tensor in every) - size
    return held, (
        f"{format_bytes(size)} for its turn on {device}, {format_bytes(rest)} streamed leaf by leaf"
    )


def _entry(
    stage: _Stage, name: str, part: torch.nn.Module, held: list[torch.Tensor]
) -> Callable[[str], None]:
    """What a component says when it begins: an encode needs what a decode did without."""

    def begin(method: str) -> None:
        whole = method == "encode" and bool(held)
        stage.begin(name, tensors_of(part) if whole else None)

    return begin


class _Stage:
    """Who is on the device. Not thread-safe, as pipelines are not.

    Hazard: the host's tensors count as the weights. What a run writes into the device's copies is
    lost when they leave.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: dict[str, list[torch.Tensor]] = {}
        self._shares: dict[str, Share] = {}
        self._homes: dict[str, dict[torch.Tensor, torch.Tensor]] = {}

    def add(self, name: str, held: list[torch.Tensor], share: Share) -> None:
        """Have ``held`` come and go with ``name``."""
        self._held[name], self._shares[name] = held, share
        self._homes[name] = {}

    def begin(self, name: str, tensors: Iterable[torch.Tensor] | None = None) -> None:
        """``name`` works now: who has to leave leaves, and its weights come."""
        beside = self._shares[name].beside
        for other, share in self._shares.items():
            if other != name and not share.stays and other not in beside:
                self.leave(other)
        self.come(name, tensors)

    def come(self, name: str, tensors: Iterable[torch.Tensor] | None = None) -> None:
        """Bring what is not there."""
        homes = self._homes[name]
        for tensor in self._held[name] if tensors is None else tensors:
            if tensor.device.type == "cpu":
                homes[tensor] = tensor.data
                tensor.data = tensor.data.to(self._device, non_blocking=tensor.is_pinned())

    def leave(self, name: str) -> None:
        """Put the host's tensors back."""
        homes = self._homes[name]
        for tensor, home in homes.items():
            if tensor.device == self._device:
                # A pipeline may have cast its VAE for the decode, and back: both are exact.
                tensor.data = home if home.dtype == tensor.dtype else home.to(tensor.dtype)
        homes.clear()

    def end(self) -> None:
        """A run is over."""
        for name, share in self._shares.items():
            if not share.stays:
                self.leave(name)

    def clear(self) -> None:
        """Everybody leaves."""
        for name in self._shares:
            self.leave(name)

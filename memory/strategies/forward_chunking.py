"""Forward chunking: feed-forward layers work on some tokens at a time.

The hidden state of a feed-forward layer is 4 to 8 times as wide as a block's. diffusers chunks
only where the number of tokens divides evenly, and not in every model; here any number of tokens
and every feed-forward layer will do. Each token's result is independent of the others.

Hazard: under leaf offload every chunk moves the layer's weights again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .base import Applied, Method, Outcome, Skipped, Undo, undo_all, wrap_method

NAME = "forward chunking"


@dataclass(frozen=True)
class ForwardChunking:
    """``chunk`` tokens (the last dimension but one) go through at once."""

    chunk: int


def apply(config: ForwardChunking, component: torch.nn.Module, name: str) -> Outcome:
    """Chunk every feed-forward layer of a denoiser."""
    from ..adapters.diffusers import feed_forwards

    layers = feed_forwards(component)
    if not layers:
        return Skipped(NAME, name, "it has no feed-forward layer")
    undos: list[Undo] = [
        wrap_method(layer, "forward", _chunked(config.chunk)) for _, layer in layers
    ]
    detail = f"{config.chunk} tokens at a time through {len(layers)} feed-forward layers"
    return Applied(NAME, name, detail, lambda: undo_all(reversed(undos)))


def _chunked(chunk: int) -> Callable[[Method], Method]:
    def around(original: Method) -> Method:
        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if hidden_states.ndim < 3 or hidden_states.shape[-2] <= chunk:
                return original(hidden_states, *args, **kwargs)
            whole: torch.Tensor | None = None
            for first in range(0, hidden_states.shape[-2], chunk):
                part = original(hidden_states[..., first : first + chunk, :], *args, **kwargs)
                if whole is None:
                    whole = part.new_empty((*hidden_states.shape[:-1], part.shape[-1]))
                whole[..., first : first + chunk, :] = part
            assert whole is not None
            return whole

        return forward

    return around

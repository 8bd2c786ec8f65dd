"""Foretells from a step of one cond the peak of a step with several of them in one batch.

Activations grow with the batch and streamed weights do not, and only the sum of both is measured.
So the step is measured piece by piece: within each streamed layer, and between the layers, where
no weights are. What layers use for scratch is told from their weights by size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ... import backend
from ...peaks import PeakWindow
from .exact_lora import TEMPORARY
from .limits import leaves_of, streamed
from .models import cast_buffers

_MARGIN = 16
_ROUNDING = 256 << 10
"""Added to a forecast, a part of it and bytes: a batch is also put together and taken apart, and
the allocator rounds every block."""


@dataclass(frozen=True)
class Piece:
    """Bytes beside the resident weights: at a layer's begin and end, and its peak.

    Its own weights are ``held`` while it computes, and at most ``weights`` while they are made
    ready. Between layers there are none, and all that is measured scales.
    """

    before: int
    after: int
    peak: int
    held: int = 0
    weights: int = 0

    def scaled(self, base: int, count: int) -> int:
        """The peak with ``count`` times the activations beside ``base`` bytes that stay."""
        everything = base + count * max(0, self.peak - base)
        if not self.weights:
            return everything
        most = max(self.before, self.after)
        scratch = max(0, self.peak - most - self.weights)
        preparing = self.peak + (count - 1) * max(0, self.before - base)
        computing = base + count * (max(0, most - base) + scratch) + self.held
        return min(everything, max(preparing, computing))


class Forecast:
    """Over a block with one cond at a time; then :meth:`beside` foretells."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts
        self._resident = sum(int(part.loaded_size()) for part in parts)
        self._device = backend.device_of(parts[0].load_device)
        self._pieces: list[Piece] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Forecast:
        for part in self._parts:
            for name, layer in leaves_of(part):
                if layer.comfy_cast_weights:
                    held, weights = (streamed(part, name, layer, more) for more in (0, TEMPORARY))
                    # Where there are buffers, the weights as they are stored lie in those.
                    cast = held - sum(own.nbytes for own in layer.parameters(recurse=False))
                    self._handles.append(layer.register_forward_pre_hook(self._begin))
                    self._handles.append(
                        layer.register_forward_hook(self._ending(held, weights, cast))
                    )
        self._window = PeakWindow(self._device)
        self._before = self._base = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._between()
        self._window.close()

    def beside(self, count: int) -> int:
        """The peak beside the resident weights with ``count`` conds in one batch."""
        most = max((piece.scaled(self._base, count) for piece in self._pieces), default=0)
        return most + most // _MARGIN + _ROUNDING + cast_buffers()

    def _begin(self, *_: Any) -> None:
        self._between()
        self._window = PeakWindow(self._device)
        self._before = self._now()

    def _between(self) -> None:
        peak = (self._window.close().allocated or 0) - self._resident - cast_buffers()
        self._pieces.append(Piece(peak, peak, peak))

    def _ending(self, held: int, weights: int, cast: int) -> Any:
        def end(*_: Any) -> None:
            now, kept = self._now(), cast_buffers()
            peak = (self._window.close().allocated or 0) - self._resident - kept
            self._pieces.append(Piece(self._before, now, peak, cast if kept else held, weights))
            self._window = PeakWindow(self._device)

        return end

    def _now(self) -> int:
        return (backend.allocated(self._device) or 0) - self._resident - cast_buffers()

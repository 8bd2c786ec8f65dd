"""Keeps diffusers' prefetch from raising the peak of group offload.

While a group computes, diffusers loads the next one. That is free in the valleys of memory use
and costs at its peak. The first forward, which prefetches nothing, is measured from group to
group; afterwards each link of diffusers' chain stays only if the next group fits under the peak
seen there. Groups without a link load themselves, synchronously.

The measure holds for the size of that first forward; at another one the peak can be exceeded by
one group's weights at most.
"""

from __future__ import annotations

from typing import Any

import torch

from ..peaks import PeakWindow
from ..strategies.base import Undo
from .diffusers import GROUP_HOOKS, hook_of

_ALLOCATION = 512
"""Allocators round sizes up to this many bytes."""


def limit_prefetch(root: torch.nn.Module, device: torch.device) -> Undo:
    """Measure the next forward of ``root`` and prune its prefetch chain; undo stops measuring."""
    return _Measure(root, device).remove


class _Measure:
    """Torch hooks around the groups of ``root`` for the length of one forward."""

    def __init__(self, root: torch.nn.Module, device: torch.device) -> None:
        self._root = root
        self._device = device
        self._window: PeakWindow | None = None
        self._current: torch.nn.Module | None = None
        self._peaks: dict[torch.nn.Module, int] = {}
        self._handles: list[Any] = []
        for part in root.modules():
            if hook_of(part, GROUP_HOOKS[0]) is not None:
                self._handles.append(part.register_forward_pre_hook(self._enter, prepend=True))
        self._handles.append(root.register_forward_hook(self._finish, always_call=True))

    def remove(self) -> None:
        """Take the hooks away; what was pruned stays until diffusers' hooks go."""
        self._close_window()
        while self._handles:
            self._handles.pop().remove()

    def _enter(self, module: torch.nn.Module, _args: Any) -> None:
        self._close_window()
        self._current = module
        self._window = PeakWindow(self._device)

    def _close_window(self) -> None:
        if self._window is None or self._current is None:
            return
        peak = self._window.close().allocated
        if peak is not None:
            self._peaks[self._current] = max(peak, self._peaks.get(self._current, 0))
        self._window = self._current = None

    def _finish(self, _module: torch.nn.Module, _args: Any, _output: Any) -> None:
        self._close_window()
        if hook_of(self._root, GROUP_HOOKS[2]) is not None:
            # The forward broke off before diffusers had its order: measure the next one.
            return
        self.remove()
        if self._peaks:
            _prune(self._root, self._peaks)


def _prune(root: torch.nn.Module, peaks: dict[torch.nn.Module, int]) -> None:
    ceiling = max(peaks.values())
    refused: list[Any] = []
    kept: set[int] = set()
    for part, peak in peaks.items():
        hook = hook_of(part, GROUP_HOOKS[0])
        if hook is None or hook.next_group is None:
            continue
        if peak + _stored_bytes(hook.next_group) > ceiling:
            refused.append(hook)
        else:
            kept.add(id(hook.next_group))
    for hook in refused:
        group, hook.next_group = hook.next_group, None
        if id(group) not in kept:
            group.onload_self = True
            group.non_blocking = False


def _stored_bytes(group: Any) -> int:
    """Device bytes of a group as it is copied, before any cast."""
    tensors = [t for part in group.modules for t in (*part.parameters(), *part.buffers())]
    tensors += [*group.parameters, *group.buffers]
    return sum(-(-tensor.nbytes // _ALLOCATION) * _ALLOCATION for tensor in tensors)

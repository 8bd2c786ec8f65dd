"""Keeps diffusers' prefetch from raising the peak of group offload.

While a group computes, diffusers loads the next one. That is free in the valleys of memory use
and costs at its peak. So a forward with inputs of a size not seen before prefetches nothing and is
measured from group to group; in later ones of that size each link of diffusers' chain holds only
if the next group fits under the peak seen. Groups without a link load themselves, synchronously.

Hazard: measuring resets torch's own peak counters of the device; ``PeakWindow`` sees through it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from ..peaks import PeakWindow
from ..strategies.base import Undo
from .diffusers import GROUP_HOOKS, convert, hook_of

_ALLOCATION = 512
"""Allocators round sizes up to this many bytes."""

_Sizes: TypeAlias = tuple[tuple[int, ...], ...]


def limit_prefetch(root: torch.nn.Module, device: torch.device) -> Undo:
    """Measure and prune the prefetch chain of ``root``, for each size of input; undo stops that.

    The chain stays as the last forward had it: diffusers' hooks go next.
    """
    return _Limit(root, device).remove


class _Limit:
    """Torch hooks around ``root`` and its groups; which links hold for which sizes of input."""

    def __init__(self, root: torch.nn.Module, device: torch.device) -> None:
        self._root = root
        self._device = device
        self._links: list[tuple[Any, Any]] = []
        self._kept: dict[_Sizes, set[int]] = {}
        self._measuring: _Sizes | None = None
        self._window: PeakWindow | None = None
        self._current: torch.nn.Module | None = None
        self._peaks: dict[torch.nn.Module, int] = {}
        self._handles: list[Any] = [
            root.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True)
        ]
        for part in root.modules():
            if hook_of(part, GROUP_HOOKS[0]) is not None:
                self._handles.append(part.register_forward_pre_hook(self._enter, prepend=True))
        self._handles.append(root.register_forward_hook(self._finish, always_call=True))

    def remove(self) -> None:
        """Take the hooks away."""
        self._close_window()
        while self._handles:
            self._handles.pop().remove()

    def _begin(self, _module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        sizes = _sizes((args, kwargs))
        kept = self._kept.get(sizes)
        self._measuring = sizes if kept is None else None
        self._peaks = {}
        self._hold(kept or set())

    def _enter(self, module: torch.nn.Module, _args: Any) -> None:
        if self._measuring is None:
            return
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

    def _finish(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        self._close_window()
        sizes, self._measuring = self._measuring, None
        order_unknown = hook_of(self._root, GROUP_HOOKS[2]) is not None
        if sizes is None or order_unknown or output is None:
            return  # nothing was measured, or the forward broke off: the next one is measured
        if not self._links:
            hooks = [hook_of(part, GROUP_HOOKS[0]) for part in self._root.modules()]
            self._links = [(h, h.next_group) for h in hooks if h is not None and h.next_group]
        self._kept[sizes] = self._fitting()
        self._hold(self._kept[sizes])

    def _fitting(self) -> set[int]:
        """Indices of the links whose next group fits under the peak beside what runs then."""
        ceiling = max(self._peaks.values(), default=0)
        peaks = {id(hook_of(part, GROUP_HOOKS[0])): peak for part, peak in self._peaks.items()}
        return {
            index
            for index, (hook, group) in enumerate(self._links)
            if peaks.get(id(hook), ceiling) + _stored_bytes(group) <= ceiling
        }

    def _hold(self, kept: set[int]) -> None:
        """Let just those links hold; every other group loads itself, and is waited for."""
        for hook, group in self._links:
            hook.next_group = None
            group.onload_self, group.non_blocking = True, False
        for index in kept:
            hook, group = self._links[index]
            hook.next_group = group
            group.onload_self, group.non_blocking = False, True


def _sizes(values: Any) -> _Sizes:
    """The shapes of all tensors in a call's arguments."""
    found: list[tuple[int, ...]] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tuple(tensor.shape))
        return tensor

    convert(values, note)
    return tuple(found)


def _stored_bytes(group: Any) -> int:
    """Device bytes of a group as it is copied, before any cast."""
    tensors = [t for part in group.modules for t in (*part.parameters(), *part.buffers())]
    tensors += [*group.parameters, *group.buffers]
    return sum(-(-tensor.nbytes // _ALLOCATION) * _ALLOCATION for tensor in tensors)

"""Cleanup at the moments of a run: after a denoising step, after a component left, at its end.

The moments are a configuration's switches, and its policy says whether memory is given back at
each. Only what nobody uses goes: weights in use stay where they are. Young garbage is collected,
not all of it: a full collection would cost more than a step. ``release`` does the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..cleanup import YOUNG, cleanup_due, release
from ..levels import MemoryOptimizationConfig
from ..stages import DENOISING, stage_of
from .base import Applied, Outcome, Skipped, Undo, then, undo_all, wrap_method

NAME = "cleanup"
_END = "maybe_free_model_hooks"
"""What every diffusers pipeline calls when its run is over."""


@dataclass(frozen=True)
class CleanupMoments:
    """``config`` has the policy and the switches; ``device`` is where memory is given back."""

    config: MemoryOptimizationConfig
    device: torch.device


def apply(config: CleanupMoments, pipe: Any) -> list[Outcome]:
    """Clean up during and after the runs of ``pipe``, as its configuration asks."""
    outcomes: list[Outcome] = []
    undos: list[Undo] = []
    try:
        if config.config.after_step:
            outcomes.append(_after_step(config, pipe, undos))
        if config.config.after_unload:
            outcomes += _after_unload(config, pipe, undos)
        if config.config.on_exit:
            outcomes.append(_on_exit(config, pipe, undos))
    except BaseException:
        undo_all(reversed(undos))
        raise
    return outcomes


def _after_step(config: CleanupMoments, pipe: Any, undos: list[Undo]) -> Outcome:
    if not hasattr(getattr(pipe, "scheduler", None), "step"):
        return Skipped(NAME, "scheduler", "this pipeline has no scheduler: it takes no steps")
    clean = then(lambda: _clean(config, "after_step"))
    watched: list[tuple[Any, Undo]] = []

    def watch(*_: Any) -> None:
        scheduler = pipe.scheduler
        if not watched or watched[0][0] is not scheduler:
            forget()
            watched.append((scheduler, wrap_method(scheduler, "step", clean)))

    def forget() -> None:
        while watched:
            watched.pop()[1]()

    watch()
    # A scheduler may be exchanged at any time: a step's own forward comes before it.
    hooks = [part.register_forward_pre_hook(watch) for part in _denoisers(pipe)]

    def undo() -> None:
        undo_all([*(hook.remove for hook in hooks), forget])

    undos.append(undo)
    return Applied(NAME, "scheduler", f"{_policy(config)} after each step", undo)


def _denoisers(pipe: Any) -> list[torch.nn.Module]:
    return [
        part
        for name, part in pipe.components.items()
        if stage_of(name) == DENOISING and isinstance(part, torch.nn.Module)
    ]


def _after_unload(config: CleanupMoments, pipe: Any, undos: list[Undo]) -> list[Outcome]:
    from ..adapters.diffusers import component_hooks

    if not component_hooks(pipe):
        return []  # nothing leaves as a whole: weights are streamed, or they stay
    clean = then(lambda: _clean(config, "after_unload"))
    watched: list[Undo] = []

    def watch() -> None:
        watched[:] = [wrap_method(hook, "offload", clean) for hook in component_hooks(pipe)]

    def undo() -> None:
        undo_all(reversed(watched))
        watched.clear()

    watch()
    undos += [undo, wrap_method(pipe, _END, then(watch))]
    whole = undos[-2:]
    detail = f"{_policy(config)} after a component has left"
    return [Applied(NAME, "components", detail, lambda: undo_all(reversed(whole)))]


def _on_exit(config: CleanupMoments, pipe: Any, undos: list[Undo]) -> Outcome:
    if not hasattr(pipe, _END):
        return Skipped(NAME, "pipeline", "its class does not say when a run is over")
    undo = wrap_method(pipe, _END, then(lambda: _clean(config, "on_exit")))
    undos.append(undo)
    return Applied(NAME, "pipeline", f"{_policy(config)} at the end of a run", undo)


def _clean(config: CleanupMoments, moment: str) -> None:
    if cleanup_due(config.config, moment, config.device):
        release(device=config.device, collect=YOUNG)


def _policy(config: CleanupMoments) -> str:
    return "always" if config.config.cleanup == "always" else "when memory is short,"

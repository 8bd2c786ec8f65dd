"""CPU mode: a component computes on the CPU while the pipeline works on an accelerator.

Its inputs come to the CPU, its answer goes back to where they were. float16 weights compute in
float32, half precision being slow on most CPUs: cast for the call and put back afterwards, which
is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .base import Applied, Method, Outcome, Undo, undo_all, wrap_method
from .snapshot import Snapshot, tensors_of

NAME = "cpu mode"
_METHODS = ("forward", "encode", "decode")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class CpuMode:
    """``device`` is where answers go when no argument shows where the pipeline works."""

    device: torch.device


def apply(config: CpuMode, component: torch.nn.Module, name: str) -> Outcome:
    """Keep ``component`` in host memory and compute it there."""
    snapshot = Snapshot(component)
    undos: list[Undo] = [snapshot.restore]
    try:
        component.to(_CPU)
        for method in _METHODS:
            if hasattr(component, method):
                undos.append(wrap_method(component, method, _on_cpu(component, config.device)))
    except BaseException:
        undo_all(reversed(undos))
        raise
    return Applied(NAME, name, "computes on the CPU", lambda: undo_all(reversed(undos)))


def _on_cpu(component: torch.nn.Module, device: torch.device) -> Callable[[Method], Method]:
    from ..adapters.diffusers import convert

    def around(original: Method) -> Method:
        def run(*args: Any, **kwargs: Any) -> Any:
            home = _device_of((args, kwargs)) or device
            with _full_precision(component) as outside:
                arrive = lambda t: _cast(t.to(_CPU), outside, torch.float32)  # noqa: E731
                output = original(*convert(args, arrive), **convert(kwargs, arrive))
            leave = lambda t: _cast(t, torch.float32, outside).to(home)  # noqa: E731
            return _answer(convert(output, leave), leave)

        return run

    return around


def _cast(tensor: torch.Tensor, source: torch.dtype | None, to: torch.dtype | None) -> torch.Tensor:
    return tensor if source is None or to is None or tensor.dtype != source else tensor.to(to)


def _answer(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Move a distribution over latents, which is no tensor, along with the rest."""
    if isinstance(output, torch.Tensor):
        return output
    items = output if isinstance(output, tuple) else getattr(output, "values", tuple)()
    for item in items:
        moments = getattr(item, "parameters", None)
        if isinstance(moments, torch.Tensor):
            moved = type(item)(change(moments))
            if isinstance(output, tuple):
                return (moved, *output[1:])
            return type(output)(**{next(iter(output.keys())): moved})
    return output


def _device_of(values: Any) -> torch.device | None:
    if isinstance(values, torch.Tensor):
        return values.device
    if isinstance(values, dict):
        values = tuple(values.values())
    if isinstance(values, (list, tuple)):
        for value in values:
            found = _device_of(value)
            if found is not None:
                return found
    return None


@contextmanager
def _full_precision(component: torch.nn.Module) -> Iterator[torch.dtype | None]:
    """float16 tensors of the component in float32; yields float16, or None if there are none.

    Nested calls (``forward`` calling ``decode``) find nothing left to cast.
    """
    halves = [t for t in tensors_of(component) if t.dtype == torch.float16]
    originals = [tensor.data for tensor in halves]
    try:
        for tensor in halves:
            tensor.data = tensor.data.float()
        yield torch.float16 if halves else None
    finally:
        for tensor, original in zip(halves, originals, strict=True):
            tensor.data = original

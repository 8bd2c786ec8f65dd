"""What a caller may hand to the monitor and to ``release``, and the named parts of it.

A pipeline is anything with a ``components`` mapping; an optimizer anything with
``optimize_pipeline``. Duck typing, because the core imports neither diffusers nor accelerate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .errors import TargetError

OWN_STATE = "pipeline"
"""The part that stands for tensors a pipeline keeps in its own attributes."""


def is_device(target: Any) -> bool:
    """Whether ``target`` names a device."""
    return isinstance(target, (str, torch.device))


def is_optimizer(target: Any) -> bool:
    """Whether ``target`` is an optimizer, which stands for the pipeline it optimised."""
    return hasattr(target, "optimize_pipeline")


def is_pipeline(target: Any) -> bool:
    """Whether ``target`` has named components, as diffusers' pipelines do."""
    return isinstance(getattr(target, "components", None), Mapping)


def pipeline_of(target: Any) -> Any | None:
    """The pipeline ``target`` is or stands for; ``None`` if there is none (yet)."""
    if is_optimizer(target):
        return getattr(target, "pipeline", None)
    return target if is_pipeline(target) else None


def parts_of(target: Any) -> Iterator[tuple[str, Any]]:
    """(name, object) of everything in ``target`` that can hold tensors, each object once.

    Raises:
        TargetError: ``target`` is nothing that holds a model.
    """
    if isinstance(target, torch.nn.Module):
        yield type(target).__name__, target
        return
    pipeline = pipeline_of(target)
    if pipeline is None:
        if is_optimizer(target):
            return
        raise TargetError(
            f"{type(target).__name__} is neither a pipeline (with `components`), nor a torch "
            "module, nor a MemoryOptimizer; for a tensor drop your own reference to it"
        )
    seen: set[int] = set()
    for name, component in pipeline.components.items():
        if hasattr(component, "__dict__") and id(component) not in seen:
            seen.add(id(component))
            yield name, component
    if id(pipeline) not in seen:
        yield OWN_STATE, pipeline

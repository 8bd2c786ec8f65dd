"""What Lowtide left on models that it was to leave as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from subjects import Subject


def leftovers(one: Subject) -> list[str]:
    """What Lowtide left on the originals: classes, attributes, functions, wrappers."""
    found = []
    for part, patcher in one.parts().items():
        holders: list[tuple[str, Any]] = [(part, patcher), (f"{part}.model", patcher.model)]
        holders += [(f"{part}.{name}", it) for name, it in patcher.model.named_modules() if name]
        for name, holder in holders:
            found += [f"{name}: {what}" for what in _ours(holder)]
    for name, holder in (("vae", one.vae), ("clip", one.clip)):
        found += [f"{name}: {what}" for what in _ours(holder)]
    return found


def _ours(holder: Any) -> list[str]:
    if holder is None:
        return []
    found = [f"class {type(holder).__name__}"] if _is_ours(type(holder)) else []
    for key, value in vars(holder).items():
        if "lowtide" in key.lower() or any(_is_ours(it) for it in _within(value)):
            found.append(key)
    return found


def _within(value: Any, depth: int = 4) -> Iterator[Any]:
    """A value and what its containers hold; modules and tensors are visited elsewhere."""
    if isinstance(value, (torch.nn.Module, torch.Tensor)):
        return
    yield value
    if depth and isinstance(value, dict):
        for key, held in value.items():
            yield key
            yield from _within(held, depth - 1)
    elif depth and isinstance(value, (list, tuple, set)):
        for held in value:
            yield from _within(held, depth - 1)


def _is_ours(value: Any) -> bool:
    if isinstance(value, str):
        return value.startswith("lowtide")  # a name, and not a path with it
    kind = value if isinstance(value, (type, Callable)) else type(value)  # type: ignore[arg-type]
    lineage = kind.__mro__ if isinstance(kind, type) else (kind,)
    return any(str(getattr(it, "__module__", "")).startswith("lowtide") for it in lineage)

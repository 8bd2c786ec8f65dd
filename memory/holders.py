"""Who holds what is still on the device: a scan of live tensors and of what refers to them.

On demand only: it walks every object Python's collector knows (some tenths of a second once torch
and a few libraries are loaded) and moves nothing.
"""

from __future__ import annotations

import gc
import sys
import types
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

LEVELS = 6
"""How many references away from a tensor its owner is looked for."""

LARGEST = 64
"""Storages that are traced to an owner; the smaller rest is one sum."""

UNKNOWN = "unknown holder"

_CONTAINERS = (dict, list, tuple, set, frozenset)


@dataclass(frozen=True)
class Holder:
    """Live bytes on a device by who holds them.

    Attributes:
        owner: as a person would look for it: ``module.NAME``, ``package.module.Class.attribute``
            or ``function() in file.py, line N``.
        held: bytes of distinct storages.
        tensors: how many storages those are.
    """

    owner: str
    held: int
    tensors: int


def holders(device: torch.device, known: Iterable[torch.Tensor] = ()) -> list[Holder]:
    """Owners of live tensors on ``device``, the largest first, without those ``known``.

    A model's weights are one: its outermost module's.

    Args:
        device: with its index.
        known: tensors somebody accounts for already, such as a loaded model's weights.
    """
    skip = {_key(tensor) for tensor in known if _is_on(tensor, device)}
    groups: dict[int, _Group] = {}
    counted = set(skip)
    tensors, tops = _sweep(device)
    for tensor in tensors:
        key = _key(tensor)
        top = tops.get(id(tensor))
        start = tensor if top is None else top
        group = groups.get(key[1] if top is None else id(top))
        if key in skip:
            continue
        if group is None:
            group = groups[key[1] if top is None else id(top)] = _Group([])
        if not any(start is one for one in group.starts):
            group.starts.append(start)
        if key not in counted:
            counted.add(key)
            group.sizes.append(tensor.untyped_storage().nbytes())
    del tensors, tops
    ranked = sorted(groups.values(), key=lambda group: sum(group.sizes), reverse=True)
    groups.clear()
    found: dict[str, list[int]] = defaultdict(list)
    for group in ranked[:LARGEST]:
        found[_owner_of(group.starts, ranked)] += group.sizes
    for group in ranked[LARGEST:]:
        found["smaller tensors"] += group.sizes
    named = [Holder(owner, sum(sizes), len(sizes)) for owner, sizes in found.items() if sizes]
    return sorted(named, key=lambda holder: holder.held, reverse=True)


@dataclass(eq=False)
class _Group:
    """Storages with one holder to look for, from the objects ``starts`` outwards."""

    starts: list[Any]
    sizes: list[int] = field(default_factory=list)


def _sweep(device: torch.device) -> tuple[list[torch.Tensor], dict[int, torch.nn.Module]]:
    """Live tensors on the device, and of weights the outermost module, by the tensor's id."""
    tensors: list[torch.Tensor] = []
    modules: list[torch.nn.Module] = []
    for one in gc.get_objects():
        # By the type: an object may pretend to be of another class and do work to say so.
        kind = type(one)
        if issubclass(kind, torch.Tensor):
            if _is_on(one, device):
                tensors.append(one)
        elif issubclass(kind, torch.nn.Module) and "_modules" in vars(one):
            modules.append(one)
    inner = {id(child) for one in modules for child in one._modules.values()}
    tops: dict[int, torch.nn.Module] = {}
    for one in modules:
        if id(one) not in inner:
            for tensor in (*one.parameters(), *one.buffers()):
                tops.setdefault(id(tensor), one)
    return tensors, tops


def _is_on(tensor: torch.Tensor, device: torch.device) -> bool:
    try:
        if tensor.device.type != device.type or tensor.device.index not in (None, device.index):
            return False
        return tensor.untyped_storage().nbytes() > 0
    except (RuntimeError, NotImplementedError, ReferenceError):
        return False  # tensors without storage: fake, sparse, functional ones


def _key(tensor: torch.Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def _owner_of(starts: list[Any], ours: list[_Group]) -> str:
    """Search outwards, level by level, for something with a name."""
    ignored = {id(starts), id(ours)}
    for group in ours:
        ignored.update((id(group), id(vars(group)), id(group.starts)))
    level: list[Any] = list(starts)
    seen: set[int] = set(ignored)
    inner: list[Any] = []
    for _ in range(LEVELS):
        # By its id: a frame that refers to itself would keep the tensors until it is collected.
        here = id(sys._getframe())
        outer = [
            one
            for one in gc.get_referrers(*level)
            if id(one) not in seen and one is not level and one is not inner and id(one) != here
        ]
        # A class or an instance refers to its dictionary, and only that to the value.
        held = [*level, *inner]
        names = [name for one in outer if (name := _name(one, held)) is not None]
        if names:
            return min(names, key=lambda name: (_rank(name), len(name), name))
        seen.update(id(one) for one in outer)
        inner, level = level, [one for one in outer if _passes_on(one)]
        if not level:
            break
    return _running(starts) or UNKNOWN


def _running(starts: list[Any]) -> str | None:
    """The running function that holds one of ``starts``; the collector does not know frames."""
    wanted = {id(one) for one in starts}
    frames = list(sys._current_frames().values())
    try:
        while frames:
            current = frames.pop()
            if current.f_globals.get("__name__") != __name__ and any(
                id(value) in wanted for value in list(current.f_locals.values())
            ):
                return _name(current, starts)
            if current.f_back is not None:
                frames.append(current.f_back)
        return None
    finally:
        frames.clear()  # this function's own is among them
        current = None  # type: ignore[assignment]


def _rank(name: str) -> int:
    """A module's own name first, then a class's attribute, then a running function."""
    return 2 if "() in " in name else 1 if name.startswith("torch.") else 0


def _passes_on(one: Any) -> bool:
    return isinstance(one, (*_CONTAINERS, types.CellType, types.MethodType)) or hasattr(
        one, "__dict__"
    )


def _name(one: Any, held: list[Any]) -> str | None:
    """A name for a referrer of one of ``held``; ``None`` for containers and other links."""
    if isinstance(one, types.FrameType):
        code = one.f_code
        if one.f_globals.get("__name__") == __name__:
            return None
        return f"{code.co_name}() in {_short(code.co_filename)}, line {one.f_lineno}"
    if isinstance(one, dict):
        module = one.get("__name__")
        if isinstance(module, str) and vars(sys.modules.get(module, types)) is one:
            key = _key_in(one, held)
            return f"{module}.{key}" if key else None
        return None
    if isinstance(one, (*_CONTAINERS, types.CellType, types.MethodType, torch.Tensor)):
        return None
    if isinstance(one, types.FunctionType):
        return f"{one.__module__}.{one.__qualname__}"
    if isinstance(one, torch.nn.Module):
        return None  # a part of a model: its owner says more
    kind = type(one)
    key = _key_in(getattr(one, "__dict__", {}), held)
    if isinstance(one, type):
        name = f"{one.__module__}.{one.__qualname__}"
    else:
        name = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__ == "builtins" and not isinstance(one, type):
        return None
    return f"{name}.{key}" if key else name


def _key_in(mapping: Mapping[Any, Any], held: list[Any]) -> str | None:
    wanted = {id(one) for one in held}
    for key, value in list(mapping.items()):
        if id(value) in wanted and isinstance(key, str):
            return key
    return None


def _short(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]

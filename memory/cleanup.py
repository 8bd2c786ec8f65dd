"""Gives memory back at once, in the order that works, and says by whom it was held.

The order: let a failed run's frames go, take the targets off the device, wait for the device,
collect garbage, empty the allocator's cache, trim the host's heap. Every step runs even if one
before it failed; the receipt lists what did.
"""

from __future__ import annotations

import gc
import logging
import time
from typing import Any

import torch

from . import backend
from .errors import ConfigError
from .evict import evict
from .frames import forget_locals
from .levels import MemoryOptimizationConfig
from .receipt import CACHE, OTHERS, Reading, Receipt
from .targets import is_device, is_optimizer, parts_of
from .tensors import device_bytes, first_device
from .trim import trim_host

__all__ = ["MOMENTS", "Receipt", "cleanup_due", "release"]

logger = logging.getLogger("lowtide")

MOMENTS = ("after_load", "after_lora", "after_step", "after_unload", "on_exit")
"""When a cleanup can be due; each is a switch of the configuration."""

PRESSURE_SHARE = 0.15
"""Memory is short when less than this part of the device is free."""

YOUNG = "young"
"""For ``release(collect=...)``: objects made since the last collection or two."""

_FAILURES = (RuntimeError, MemoryError, LookupError, ValueError, TypeError, AttributeError)


def release(
    *targets: Any,
    device: str | torch.device | None = None,
    host: bool = False,
    collect: bool | str | None = None,
    error: BaseException | None = None,
) -> Receipt:
    """Take ``targets`` off the device and give all unused memory back.

    A pipeline or module is usable afterwards, on the CPU; under offload hooks it is ready for its
    next run as it is. A tensor the caller still refers to stays where it is.

    Args:
        targets: pipelines, torch modules, MemoryOptimizers; none = only what nobody uses.
        device: where to release and measure; ``None`` = where the targets are, else the best
            device there is. With a device given, targets leave that one only.
        host: also collect in full, return pinned and heap memory of the host to the system.
        collect: run the garbage collector; ``None`` = as far as bytes are left on the device,
            young objects first; ``"young"`` = only those, in some milliseconds, for use in the
            middle of a run. A full collection takes 0.1 to 0.7 s once torch, diffusers and
            transformers are loaded: it is what this function costs.
        error: an exception whose traceback may hold tensors; its frames' locals are dropped
            (a post-mortem debugger will not see them).

    Raises:
        TargetError: a target holds no model. ConfigError: ``collect`` is another text. Nothing
            has been done then.
        DeviceError: no such device.
    """
    if isinstance(collect, str) and collect != YOUNG:
        raise ConfigError(f"`collect` is {collect!r}; it takes True, False, None or {YOUNG!r}")
    parts = [part for target in targets for part in parts_of(target)]
    where = _device_for(targets, [owner for _, owner in parts], device)
    only = None if device is None else where
    started = time.perf_counter()
    before = Reading.of(where)
    errors: list[str] = []
    by_owner: dict[str, int] = {}
    if error is not None:
        forget_locals(error)
    for name, owner in parts:
        freed = _evict_measured(name, owner, only, where, errors)
        if freed:
            by_owner[name] = by_owner.get(name, 0) + freed
    try:
        backend.synchronize(where)
    except RuntimeError as failure:
        errors.append(f"{where} reports an earlier failure: {failure}")
    collect_seconds = _collect(where, collect, host)
    try:
        backend.empty_cache(where)
    except RuntimeError as failure:
        errors.append(f"the cache of {where} was not emptied: {failure}")
    trimmed = None
    if host:
        backend.empty_host_cache(where)
        trimmed = trim_host()
    after = Reading.of(where)
    _attribute(by_owner, before, after)
    return Receipt(
        device=str(where),
        before=before,
        after=after,
        by_owner=by_owner,
        remaining=sum(device_bytes(owner, only) for _, owner in parts),
        seconds=time.perf_counter() - started,
        collect_seconds=collect_seconds,
        trimmed=trimmed,
        errors=tuple(errors),
    )


def cleanup_due(
    config: MemoryOptimizationConfig, moment: str, device: str | torch.device | None = None
) -> bool:
    """Whether ``config`` asks for a cleanup at ``moment`` (one of :data:`MOMENTS`).

    Under ``pressure`` that is so when less than 15% of the device is free; a device that does
    not say how much is free counts as short of it.

    Raises:
        ConfigError: there is no such moment.
    """
    if moment not in MOMENTS:
        raise ConfigError(f"there is no moment {moment!r}; cleanups are due {', '.join(MOMENTS)}")
    if config.cleanup == "off" or not getattr(config, moment):
        return False
    if config.cleanup == "always":
        return True
    info = backend.mem_get_info(backend.device_of(device))
    return info is None or info[0] < PRESSURE_SHARE * info[1]


def _device_for(
    targets: tuple[Any, ...], owners: list[Any], device: str | torch.device | None
) -> torch.device:
    if device is not None:
        return backend.device_of(device)
    for owner in owners:
        found = first_device(owner)
        if found is not None:
            return backend.device_of(found)
    for target in targets:
        if is_optimizer(target) and is_device(getattr(target, "device", None)):
            return backend.device_of(target.device)
    return backend.device_of()


def _evict_measured(
    name: str,
    owner: Any,
    only: torch.device | None,
    where: torch.device,
    errors: list[str],
) -> int:
    """Take one part off the device; the bytes its allocator got back, as it rounds them."""
    before = backend.allocated(where)
    held = 0
    try:
        held = evict(owner, only)
    except _FAILURES as failure:
        # Hooks are other libraries': one that fails must not keep the rest on the device.
        errors.append(f"{name}: {type(failure).__name__}: {failure}")
        logger.error("could not take %s off the device: %s", name, failure)
    after = backend.allocated(where)
    return held if before is None or after is None else before - after


def _collect(device: torch.device, collect: bool | str | None, host: bool) -> float:
    """Collect garbage as far as asked or needed; the seconds it took."""
    started = time.perf_counter()
    if collect == YOUNG:
        gc.collect(1)
    elif collect is True or (host and collect is None):
        gc.collect()
    elif collect is None and backend.allocated(device):
        # Cycles of the run just finished are young: finding them is cheap.
        gc.collect(1)
        if backend.allocated(device):
            gc.collect()
    return time.perf_counter() - started


def _attribute(by_owner: dict[str, int], before: Reading, after: Reading) -> None:
    """Add what no target owned, so that the sum is the fall of ``reserved``."""
    if (
        before.allocated is None
        or after.allocated is None
        or before.reserved is None
        or after.reserved is None
    ):
        return
    fall = before.allocated - after.allocated
    others = fall - sum(by_owner.values())
    cache = (before.reserved - before.allocated) - (after.reserved - after.allocated)
    for owner, count in ((OTHERS, others), (CACHE, cache)):
        if count > 0:
            by_owner[owner] = count

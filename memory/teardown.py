"""Force Cleanup: everything Lowtide and its host can give back, in the order that works.

Models first, through whoever accounts for them: ComfyUI's by ComfyUI, diffusers pipelines by
their hooks. Then streaming buffers, garbage, and what torch and the host's heap hold without using.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import replace

import torch

from . import backend
from .adapters import comfy
from .cleanup import Receipt, release
from .holders import Holder, holders
from .receipt import CACHE, OTHERS, Reading

NAMED = 8
"""Holders of what a cleanup could not free that its receipt names, the largest first."""

BUFFERS = "streaming buffers"


def teardown(*, vram: bool, ram: bool, keep: Iterable[str] = ()) -> Receipt:
    """Take every model off the device (``vram``) and drop what the host holds (``ram``).

    Under ``ram`` ComfyUI also drops its cached results, once the prompt that is running is done;
    not with a model to ``keep``, for they hold it.

    Args:
        keep: names of models that stay, as the VRAM Monitor shows them, in any case. One that is
            not loaded is an error in the receipt.
    """
    device = backend.device_of(comfy.device())
    started = time.perf_counter()
    before = Reading.of(device)
    owners: dict[str, int] = {}
    errors: list[str] = []
    kept = frozenset(name.casefold() for name in keep)
    if kept:
        errors += _unknown(kept)
    with contextlib.suppress(RuntimeError):  # release() waits again, and reports it
        backend.synchronize(device)
    if vram:
        _unload_host_models(owners, kept)
        _release_pipelines(owners, errors, device, kept)
        _drop_buffers(owners, device)
        if not kept:
            backend.drop_workspaces(device)
    if ram and comfy.present() and not kept:
        from .adapters.comfy.models import drop_results_after_this_run

        drop_results_after_this_run(unload=vram)
    last = release(device=device, host=ram, collect=True)
    after = Reading.of(device)
    _add_the_rest(owners, before, after, last.by_owner.get(OTHERS, 0))
    return replace(
        last,
        before=before,
        after=after,
        holders=tuple(_left(device)[:NAMED]) if vram and after.allocated else (),
        host_holders=tuple(_on_host()[:NAMED]),
        by_owner=owners,
        seconds=time.perf_counter() - started,
        errors=(*errors, *last.errors),
    )


def _unknown(kept: frozenset[str]) -> list[str]:
    from .handles import live_pipelines

    names = [loaded.name for loaded in live_pipelines()]
    if comfy.present():
        from .adapters.comfy.models import loaded_models

        names += [model.name for model in loaded_models()]
    known = {name.casefold() for name in names}
    there = ", ".join(sorted(set(names))) or "none"
    return [
        f"keep: no loaded model is called {name!r}; there are: {there}"
        for name in sorted(kept - known)
    ]


def _unload_host_models(owners: dict[str, int], kept: frozenset[str]) -> None:
    if not comfy.present():
        return
    from .adapters.comfy.models import loaded_models, unload_all

    held = loaded_models()
    unload_all(kept)
    for model in held:
        leaves = model.name.casefold() not in kept and not model.device.startswith("cpu")
        if model.on_device and leaves:
            owners[model.name] = owners.get(model.name, 0) + model.on_device


def _release_pipelines(
    owners: dict[str, int], errors: list[str], device: object, kept: frozenset[str]
) -> None:
    from .handles import live_pipelines

    for loaded in live_pipelines():
        if loaded.name.casefold() in kept:
            continue
        receipt = loaded.release(device)
        errors += receipt.errors
        for owner, count in receipt.by_owner.items():
            name = f"{loaded.name}: {owner}"
            owners[name] = owners.get(name, 0) + count


def _drop_buffers(owners: dict[str, int], device: torch.device) -> None:
    if not comfy.present():
        return
    from .adapters.comfy.models import drop_cast_buffers

    held = backend.allocated(device) or 0
    drop_cast_buffers()
    freed = held - (backend.allocated(device) or 0)
    if freed > 0:
        owners[BUFFERS] = freed


def _add_the_rest(
    owners: dict[str, int], before: Reading, after: Reading, unreferenced: int
) -> None:
    """Name what no model owned, so that the sum is the fall of ``reserved``.

    The allocator's rounding of the models' blocks counts with its cache.
    """
    if before.reserved is None or after.reserved is None:
        return
    if unreferenced:
        owners[OTHERS] = unreferenced
    rest = before.reserved - after.reserved - sum(owners.values())
    if rest > 0:
        owners[CACHE] = rest


def _left(device: torch.device) -> list[Holder]:
    """Who holds what is still on the device."""
    if not comfy.present():
        return holders(device)
    from .adapters.comfy import executor, models, results

    caches = executor.caches()
    cached = [] if caches is None else results.tensors(caches)
    here = [it for it in cached if it.device.type == device.type and device.type != "cpu"]
    named = holders(device, [*models.weights_on_device(), *here])
    named += [
        Holder(model.name, model.on_device, 1)
        for model in models.loaded_models()
        if model.on_device and not model.device.startswith("cpu")
    ]
    if here:
        count = sum(it.untyped_storage().nbytes() for it in here)
        named.append(Holder(results.RESULTS, count, len(here)))
    return sorted(named, key=lambda holder: holder.held, reverse=True)


def _on_host() -> list[Holder]:
    """Who is known to hold host memory: cached results, pinned pages, copies of weights."""
    if not comfy.present():
        return []
    from .adapters.comfy import executor, host_copies, models, results

    caches = executor.caches()
    named = [] if caches is None else results.on_host(caches)
    copies = host_copies.kept_bytes()
    if copies:
        named.append(Holder("copies of weights that are on the device", copies, 1))
    pinned = models.pinned_bytes()
    if pinned:
        named.append(Holder("pinned memory, part of the models'", pinned, 1))
    return named

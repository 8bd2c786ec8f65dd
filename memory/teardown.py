"""Force Cleanup: everything Lowtide and its host can give back, in the order that works.

Models first, through whoever accounts for them: ComfyUI's by ComfyUI, diffusers pipelines by
their hooks. Then what torch and the host's heap hold without using it.
"""

from __future__ import annotations

import time
from dataclasses import replace

from . import backend
from .adapters import comfy
from .cleanup import Receipt, release
from .holders import holders
from .receipt import Reading

NAMED = 8
"""Holders of what a cleanup could not free that its receipt names, the largest first."""


def teardown(*, vram: bool, ram: bool) -> Receipt:
    """Take every model off the device (``vram``) and drop what the host holds (``ram``).

    Under ``ram`` ComfyUI also drops its cached results, once the prompt that is running is done.
    """
    device = backend.device_of(comfy.device())
    started = time.perf_counter()
    before = Reading.of(device)
    owners: dict[str, int] = {}
    errors: list[str] = []
    if vram:
        _unload_host_models(owners)
        _release_pipelines(owners, errors, device)
    if ram and comfy.present():
        from .adapters.comfy.models import drop_results_after_this_run

        drop_results_after_this_run(unload=vram)
    last = release(device=device, host=ram, collect=True)
    if vram and comfy.present():
        from .adapters.comfy.models import empty_caches

        empty_caches()
    for owner, count in last.by_owner.items():
        owners[owner] = owners.get(owner, 0) + count
    after = Reading.of(device)
    left = tuple(holders(device)[:NAMED]) if vram and after.allocated else ()
    return replace(
        last,
        before=before,
        after=after,
        holders=left,
        by_owner=owners,
        seconds=time.perf_counter() - started,
        errors=(*errors, *last.errors),
    )


def _unload_host_models(owners: dict[str, int]) -> None:
    if not comfy.present():
        return
    from .adapters.comfy.models import loaded_models, unload_all

    held = loaded_models()
    unload_all()
    for model in held:
        if model.on_device and not model.device.startswith("cpu"):
            owners[model.name] = owners.get(model.name, 0) + model.on_device


def _release_pipelines(owners: dict[str, int], errors: list[str], device: object) -> None:
    from .handles import live_pipelines

    for loaded in live_pipelines():
        receipt = loaded.release(device)
        errors += receipt.errors
        for owner, count in receipt.by_owner.items():
            name = f"{loaded.name}: {owner}"
            owners[name] = owners.get(name, 0) + count

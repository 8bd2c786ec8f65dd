"""A stand-in for DynamicVRAM's pages, and what the adapter is given where it is on."""

from __future__ import annotations

import copy
import logging
import sys
from contextlib import contextmanager
from types import ModuleType

import comfy.model_patcher as mp
from idle import CLIP
from lowtide.memory.adapters.comfy import apply
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.report import OptimizationReport
from small import CPU, DEVICE, Model
from vaes import VAE

PAGE = 32 << 20
LEVELS = ("none", "balanced", "aggressive", "ultra")


class Pages:
    """Records what is asked of a model's pages."""

    def __init__(self, *_: object) -> None:
        self.asked: list[object] = []
        self.resident = 0

    def prioritize(self) -> None:
        self.asked.append("prioritize")

    def set_watermark(self, size: int) -> None:
        self.asked.append(size)

    def loaded_size(self) -> int:
        return self.resident

    def alloc(self, size: int) -> tuple[object, int, int]:
        return (self, 0, size)

    def free_memory(self, size: int) -> int:
        return 0


class Paged(mp.ModelPatcher):
    """A patcher that says it is dynamic; its weights are where the static core puts them."""

    def is_dynamic(self) -> bool:
        return True

    def _vbar_get(self, create: bool = False) -> object:
        return self.model.pages

    def unpatch_hooks(self, *args: object) -> None:
        if isinstance(self.model.pages, Pages):
            self.model.pages.prioritize()
        super().unpatch_hooks(*args)

    def loaded_ram_size(self) -> int:
        return 0


def paged(pages: object = None) -> Paged:
    model = Model()
    model.pages = Pages() if pages is None else pages
    return Paged(model, DEVICE, CPU)


def optimized(level: str, **more: object) -> tuple[dict, dict, OptimizationReport]:
    """What was given, what came of it, and what is said."""
    clip, vae = CLIP.clone(), copy.copy(VAE)
    vae.patcher = vae.patcher.clone()
    for one in (clip, vae):
        one.patcher.__class__ = Paged
        one.patcher.model.pages = Pages()
    given = {"model": paged(), "clip": clip, "vae": vae}
    config = MemoryOptimizationConfig.from_level(level, **more)
    share = apply.divide(config, **given)
    entries: list[object] = []
    found = {
        kind: getattr(apply, f"to_{kind}")(config, share, given[kind], entries) for kind in given
    }
    apply.account_for_the_rest(config, entries)
    return given, found, OptimizationReport(config.level, str(DEVICE), entries)


def patcher_of(one: object) -> mp.ModelPatcher:
    return getattr(one, "patcher", one)


def lines(report: OptimizationReport, strategy: str) -> list[str]:
    return [line for line in report.text().splitlines() if line[2:].startswith(strategy)]


@contextmanager
def logged():
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("lowtide")
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)


@contextmanager
def aimdo():
    """DynamicVRAM on, as the adapter finds it."""
    name = "comfy.memory_management"
    module = sys.modules.get(name)
    if module is None:
        sys.modules[name] = ModuleType(name)
    kept = getattr(sys.modules[name], "aimdo_enabled", False)
    sys.modules[name].aimdo_enabled = True
    try:
        yield
    finally:
        sys.modules[name].aimdo_enabled = kept
        if module is None:
            del sys.modules[name]

"""What the tests of whole pipelines share: short runs, memory readings, comparisons."""

from __future__ import annotations

import gc
from typing import Any

import torch
from lowtide.memory.adapters.synthetic import build, run
from lowtide.tests.memory.strategies.pipes import same_values, structure, values

TINY = ("tiny-sd15", "tiny-sdxl", "tiny-flux")


def held(accelerator: Any) -> tuple[int, int]:
    """(allocated, reserved) once garbage and cache are gone."""
    gc.collect()
    accelerator.empty_cache()
    return accelerator.allocated, accelerator.reserved


def now(accelerator: Any) -> tuple[int, int]:
    """(allocated, reserved) as they are."""
    return accelerator.allocated, accelerator.reserved


def small_run(pipe: Any, **settings: Any) -> torch.Tensor:
    """One step at 64 x 64: too small an image for tiles."""
    return run(pipe, **{"size": 64, "steps": 1, **settings})


def used(name: str = "tiny-sd15") -> Any:
    """A pipeline that has run once, so that what a run leaves in its attributes is there."""
    pipe = build(name, "float32")
    small_run(pipe)
    return pipe


class Untouched:
    """A pipeline's state at construction; ``check`` compares values and structure with now."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._values = values(pipe)
        self._structure = structure(pipe)

    def check_values(self) -> None:
        assert same_values(values(self._pipe), self._values)

    def check(self) -> None:
        self.check_values()
        found = structure(self._pipe)
        assert {k: v for k, v in found.items() if self._structure.get(k) != v} == {}
        assert found.keys() == self._structure.keys()

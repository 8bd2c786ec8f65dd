"""What the tests of the strategies share: pipelines, runs, and everything an undo must restore."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from lowtide.memory.adapters.diffusers import modules_of
from lowtide.memory.adapters.synthetic.build import build, run
from lowtide.memory.evict import evict
from lowtide.memory.peaks import PeakWindow
from lowtide.memory.strategies import placement
from lowtide.memory.strategies.base import Applied, Outcome, undo_all

PLAIN = (bool, int, float, str, type(None), tuple, torch.device, torch.dtype)


def image(pipe: Any, **settings: Any) -> torch.Tensor:
    """A short run at 128 x 128."""
    return run(pipe, **{"size": 128, "steps": 2, **settings})


def tiny(name: str = "tiny-sd15", dtype: str = "float16") -> Any:
    return build(name, dtype)


def values(pipe: Any) -> dict[str, torch.Tensor]:
    """Every weight and buffer, copied."""
    return {
        f"{part}.{name}": tensor.detach().clone()
        for part, module in modules_of(pipe).items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


def same_values(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit-exact equality, device and type included."""
    return one.keys() == other.keys() and all(
        a.device == other[n].device and a.dtype == other[n].dtype and torch.equal(a, other[n])
        for n, a in one.items()
    )


def structure(pipe: Any) -> dict[str, Any]:
    """Attributes, hooks, parameter identities, signatures and configuration, comparable by ==."""
    found: dict[str, Any] = {"pipeline": _plain(vars(pipe)) | {"names": sorted(vars(pipe))}}
    for part, module in modules_of(pipe).items():
        for name, sub in module.named_modules():
            found[f"{part}.{name}"] = {
                "attributes": sorted(vars(sub)),
                "plain": _plain(vars(sub)),
                "parameters": {
                    n: (id(p), p is not None and p.requires_grad)
                    for n, p in sub._parameters.items()
                },
                "buffers": {n: id(b) for n, b in sub._buffers.items()},
                "signature": str(inspect.signature(sub.forward)),
                "torch hooks": (len(sub._forward_hooks), len(sub._forward_pre_hooks)),
                "processor": id(getattr(sub, "processor", None)),
                "pinned": [t.is_pinned() for t in sub.parameters(recurse=False)],
            }
        config = getattr(module, "config", None)
        found[f"{part} config"] = str(config)
    return found


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    return {n: v for n, v in attributes.items() if isinstance(v, PLAIN)}


@dataclass(frozen=True)
class Run:
    """An image and the bytes it took; ``peak`` is allocated, ``pinned`` what is held after it."""

    image: torch.Tensor
    peak: int
    h2d: int
    d2h: int
    pinned: int


def measured(pipe: Any, accelerator: Any, **settings: Any) -> Run:
    """A run and its figures, whoever else reads peaks meanwhile."""
    accelerator.reset_counters()
    window = PeakWindow(accelerator.device)
    try:
        found = image(pipe, **settings)
    finally:
        peak = window.close().allocated
    assert peak is not None
    counters = accelerator.counters()
    return Run(found, peak, counters["h2d"], counters["d2h"], counters["pinned"])


def undo(outcomes: Iterable[Outcome]) -> None:
    """Take back what was applied, last first."""
    undo_all([one.undo for one in outcomes if isinstance(one, Applied)][::-1])


class Plain:
    """A pipeline in host memory, and what its run gave while it was wholly on the device."""

    def __init__(
        self, accelerator: Any, name: str = "tiny-sd15", dtype: str = "float32", **settings: Any
    ) -> None:
        self.pipe = tiny(name, dtype)
        self._accelerator = accelerator
        self._settings = settings
        outcomes = placement.apply(placement.Placement(accelerator.device), self.pipe)
        self.run = self.measured()
        undo(outcomes)
        self.values = values(self.pipe)
        self.structure = structure(self.pipe)
        assert self.left() == (0, 0)
        self.weights = sum(t.nbytes for t in self.values.values())

    def measured(self) -> Run:
        return measured(self.pipe, self._accelerator, **self._settings)

    def left(self) -> tuple[int, int]:
        """Bytes (allocated, reserved) on the device, apart from what the scheduler remembers."""
        evict(self.pipe.scheduler)
        if self._accelerator.allocated:
            gc.collect()
        self._accelerator.empty_cache()
        return self._accelerator.allocated, self._accelerator.reserved

    def assert_restored(self) -> None:
        """Weights to the bit and where they were, structure, and nothing on the device."""
        assert same_values(values(self.pipe), self.values)
        found = structure(self.pipe)
        assert {n: v for n, v in found.items() if v != self.structure.get(n)} == {}
        assert found.keys() == self.structure.keys()
        assert self.left() == (0, 0)

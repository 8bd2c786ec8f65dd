"""A loaded diffusers pipeline, and the optimisations graphs attach to it.

ComfyUI caches what the loader returned, so two branches of a graph, or two runs, share one
pipeline. ``LoadedPipeline`` owns it together with the one optimisation applied at the moment; a
``PipelineHandle`` names the configuration its branch wants, and ``activate`` makes it so.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from . import backend
from .cleanup import Receipt, cleanup_due, release
from .evict import evict
from .levels import MemoryOptimizationConfig
from .targets import parts_of
from .tensors import device_bytes

if TYPE_CHECKING:
    from .foresight import Chosen
    from .optimizer import MemoryOptimizer
    from .planner.work import Work

_live: weakref.WeakSet[LoadedPipeline] = weakref.WeakSet()


class LoadedPipeline:
    """One pipeline in memory and the optimisation applied to it, of which there is one at most.

    Not thread-safe: ComfyUI runs the nodes of a graph one after the other.
    """

    def __init__(self, pipeline: Any, name: str) -> None:
        self.pipeline = pipeline
        self.name = name
        self.size = weight_bytes(pipeline)
        self.optimizer: MemoryOptimizer | None = None
        self._key: object = None
        _live.add(self)

    def on_device(self, device: torch.device) -> int:
        """Bytes the pipeline holds on ``device``."""
        return sum(device_bytes(part, device) for _, part in parts_of(self.pipeline))

    def apply(
        self,
        config: MemoryOptimizationConfig,
        device: Any = None,
        work: Work | None = None,
        chosen: Chosen | None = None,
    ) -> MemoryOptimizer:
        """Apply ``config``, undoing what was applied before; nothing if it is in force already.

        Args:
            work, chosen: as ``MemoryOptimizer.optimize_pipeline`` takes them.
        """
        from .optimizer import MemoryOptimizer

        key = (config.to_dict(), str(device))
        if self.optimizer is not None:
            if self._key == key:
                self.optimizer.optimize_pipeline(self.pipeline, work, chosen=chosen)
                return self.optimizer
            self.undo()
        optimizer = MemoryOptimizer(config.replace(), device=device)
        optimizer.optimize_pipeline(self.pipeline, work, chosen=chosen)
        self.optimizer, self._key = optimizer, key
        return optimizer

    def undo(self) -> None:
        """Take back the optimisation in force, if there is one."""
        optimizer, self.optimizer, self._key = self.optimizer, None, None
        if optimizer is not None:
            optimizer.undo()

    def release(
        self, device: Any = None, error: BaseException | None = None, *, host: bool = False
    ) -> Receipt:
        """Leave nothing of the pipeline on the device; the next ``apply`` makes it ready again.

        Offload hooks stay: they move the weights back by themselves. What was placed to stay
        is undone, so that applying places it again.
        """
        if self.optimizer is not None and self.optimizer.placed:
            self.undo()
        return release(self.pipeline, device=device, error=error, host=host)

    def settle(
        self, config: MemoryOptimizationConfig, device: Any, error: BaseException | None = None
    ) -> Receipt | None:
        """After a run under ``config``: release if its policy asks, or if the run broke off.

        A broken-off run leaves no more on the device than was there before it.
        """
        if cleanup_due(config, "on_exit", device):
            return self.release(device, error, host=config.cleanup_host)
        if error is None:
            return None
        if self.optimizer is not None and not self.optimizer.placed:
            return self.release(device, error)
        for _, part in parts_of(self.pipeline):
            if not isinstance(part, torch.nn.Module):  # a scheduler's tables came with the run
                evict(part, backend.device_of(device))
        return release(device=device, error=error)


@dataclass(frozen=True)
class PipelineHandle:
    """What travels between the diffusers nodes: a pipeline and the configuration to run it with."""

    loaded: LoadedPipeline
    config: MemoryOptimizationConfig
    device: Any = None

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline itself."""
        return self.loaded.pipeline

    @property
    def optimizer(self) -> MemoryOptimizer | None:
        """The optimizer in force on the pipeline, whichever handle asked for it."""
        return self.loaded.optimizer

    def activate(self) -> MemoryOptimizer:
        """Bring the pipeline under this handle's configuration."""
        return self.loaded.apply(self.config, self.device)


def weight_bytes(pipeline: Any) -> int:
    """Bytes of the pipeline's weights and buffers, wherever they are."""
    modules = [part for _, part in parts_of(pipeline) if isinstance(part, torch.nn.Module)]
    return sum(tensor.nbytes for m in modules for tensor in (*m.parameters(), *m.buffers()))


def live_pipelines() -> list[LoadedPipeline]:
    """The pipelines still referenced by a graph or a library user, by name."""
    return sorted(_live, key=lambda loaded: loaded.name)

"""Plays a sequence of what people do with one model, and compares every picture.

The graph it stands for: loader, LoRAs, Optimize Pipeline, more LoRAs, sampler. As in ComfyUI only
what is downstream of a change is made again, and outputs that were made before stay alive.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
import torch
from lowtide.memory.errors import BudgetError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.nodes.optimize import OptimizePipeline
from matrix import undone
from subjects import Picture, Subject, accelerator, picture, singly, subject, unload, with_lora

Loras = tuple[tuple[int, float], ...]
OTHER = {"sd15": "flux", "flux": "sd15"}
MIB = 1 << 20
STRIPS = 4 / 255
"""What a VAE that works in strips where memory is short may round otherwise, in half precision."""


class Player:
    """The state of one sequence; a method for each operation."""

    def __init__(self, name: str) -> None:
        self.one: Subject = subject(name)
        self.other: Subject = subject(OTHER[name])
        self.level, self.budget, self.fp8 = "none", None, False
        self.before: list[tuple[int, float]] = []
        self.after: list[tuple[int, float]] = []
        self.alive: list[Any] = []
        self.ballast: Any = None
        self.squeezed = False
        self.optimize()

    def loras(self) -> Loras:
        return (*self.before, *self.after)

    def config(self) -> MemoryOptimizationConfig:
        return MemoryOptimizationConfig.from_level(
            self.level, budget_bytes=self.budget, fp8_storage=self.fp8
        )

    def optimize(self) -> None:
        """Everything from the first LoRA on."""
        model, clip = patched(self.one, self.one.model, self.one.clip, tuple(self.before))
        self.optimized = OptimizePipeline().run(self.config(), model, clip, self.one.vae)[:3]
        self.downstream()

    def downstream(self) -> None:
        """The LoRAs behind Optimize Pipeline."""
        self.model, self.clip = patched(self.one, *self.optimized[:2], tuple(self.after))
        self.alive.append((self.optimized, self.model, self.clip))

    # -- operations: each returns what there is to check, or None --------------------------------
    def set_budget(self, level: str, share: float | None) -> None:
        self.level = level
        self.budget = None if share is None else int(self.one.model.model_size() * share)
        self.optimize()

    def set_fp8(self, on: bool) -> None:
        self.fp8 = on
        self.optimize()

    def add_lora(self, kind: int, strength: float, first: bool) -> None:
        if first:
            self.before.append((kind, strength))
            self.optimize()
        else:
            self.after.append((kind, strength))
            self.downstream()

    def remove_lora(self, index: int) -> None:
        if index < len(self.before):
            del self.before[index]
            self.optimize()
        elif self.after:
            del self.after[index % len(self.after)]
            self.downstream()

    def clone(self) -> None:
        """As nodes do that set an option of the model."""
        self.model = self.model.clone()
        self.model.model_options["transformer_options"]["test"] = True
        self.alive.append(self.model)

    def forget(self) -> None:
        """As when ComfyUI drops cached outputs."""
        self.alive.clear()

    def sample(self, number: int) -> dict[str, Any]:
        handle = accelerator()
        held = start = 0
        if handle is not None:
            held = 0 if self.ballast is None else self.ballast.nbytes
            start = handle.allocated - held
            handle.reset_peaks()
        vae = self.optimized[2]
        made = picture(self.one.shape, self.model, self.clip, vae, number)
        peak = None if handle is None else handle.peak_allocated
        resident = int(self.model.loaded_size())
        expected = reference(self.one.shape.name, self.loras(), self.fp8, number, made.apart)
        found = compared(made, expected)
        latent, image = made.differences(expected)
        if latent == 0.0 and image <= STRIPS and (self.level != "none" or self.budget is not None):
            found["difference"] = 0.0
        if self.loose():
            found["difference"] = None
        if handle is not None and self.budget is not None:
            found["budget"] = self.budget
            found["resident"] = resident
            # What was held before the prompt began, under no budget, is not its doing.
            found["peak"] = None if start > self.budget else peak - held
        return found

    def loose(self) -> bool:
        """Whether stock ComfyUI itself is not bit-exact: LoRAs on weights that it streams."""
        capped = self.budget is not None or self.level in ("aggressive", "ultra")
        return not capped and bool(self.loras()) and self.squeezed

    def original(self, number: int) -> dict[str, Any]:
        """The same LoRAs on the originals, without Lowtide."""
        model, clip = patched(self.one, self.one.model, self.one.clip, self.loras())
        made = picture(self.one.shape, model, clip, self.one.vae, number)
        found = compared(made, reference(self.one.shape.name, self.loras(), False, number))
        if self.squeezed and self.loras():
            found["difference"] = None
        return found

    def unload(self) -> None:
        unload()
        self.squeezed = self.ballast is not None

    def other_loads(self) -> None:
        mm.load_models_gpu([self.other.model])

    def other_samples(self, number: int) -> dict[str, Any]:
        other = self.other
        made = picture(other.shape, other.model, other.clip, other.vae, number)
        return compared(made, reference(other.shape.name, (), False, number))

    def squeeze(self, free: int) -> None:
        """Something else takes the device's memory but for ``free`` MiB."""
        handle = accelerator()
        if handle is not None:
            self.ballast = None
            size = handle.free - free * MIB
            if size > 0:
                self.ballast = torch.empty(size, dtype=torch.uint8, device=handle.device)
                self.squeezed = True

    def release(self) -> None:
        self.ballast = None


def patched(one: Subject, model: Any, clip: Any, loras: Loras) -> tuple[Any, Any]:
    for kind, strength in loras:
        model, clip = with_lora(one.shape.name, model, clip, kind, strength)
    return model, clip


def compared(made: Picture, expected: Picture) -> dict[str, Any]:
    return {"difference": max(made.differences(expected))}


@functools.lru_cache(maxsize=2048)
def reference(name: str, loras: Loras, fp8: bool, number: int, apart: bool = False) -> Picture:
    """The picture of stock ComfyUI, or of FP8 without cap or budget, from an empty device."""
    one = subject(name)
    unload()
    model, clip = patched(one, one.model, one.clip, loras)
    vae = one.vae
    if fp8:
        config = MemoryOptimizationConfig.from_level("none", fp8_storage=True)
        model, clip, vae = OptimizePipeline().run(config, model, clip, vae)[:3]
    model = singly(model) if apart else model
    made = picture(one.shape, model, clip, vae, number)
    unload()
    return made


def play(shape: str, operations: list[dict[str, Any]]) -> dict[str, Any]:
    """Plays the operations; the references they need are made before, on an empty device.

    Returns:
        ``steps``, what each operation gave (``None`` where there is nothing to check, ``refused``
        where a budget was too small), and what ``undone`` finds at the end.
    """
    rehearse(shape, operations)
    unload()
    player = Player(shape)
    steps = [attempt(player, operation) for operation in operations]
    player.alive.clear()
    player.ballast = None
    del player
    return {"steps": steps, **undone(subject(shape)), "other": undone(subject(OTHER[shape]))}


def attempt(player: Any, operation: dict[str, Any]) -> Any:
    try:
        return perform(player, operation)
    except BudgetError as error:
        return {"refused": str(error)}


def perform(player: Any, operation: dict[str, Any]) -> Any:
    arguments = {key: value for key, value in operation.items() if key != "do"}
    action: Callable[..., Any] = getattr(player, operation["do"])
    return action(**arguments)


class Rehearsal(Player):
    """Follows a sequence's LoRAs and FP8 without a model, and makes the references."""

    def optimize(self) -> None:
        pass

    downstream = clone = unload = other_loads = optimize  # type: ignore[assignment]

    def set_budget(self, level: str, share: float | None) -> None:
        pass

    def sample(self, number: int) -> dict[str, Any]:
        for apart in (False, True):
            reference(self.one.shape.name, self.loras(), self.fp8, number, apart)
        return {}

    def original(self, number: int) -> dict[str, Any]:
        reference(self.one.shape.name, self.loras(), False, number)
        return {}

    def other_samples(self, number: int) -> dict[str, Any]:
        reference(self.other.shape.name, (), False, number)
        return {}

    def squeeze(self, free: int) -> None:
        pass


def rehearse(shape: str, operations: list[dict[str, Any]]) -> None:
    player = Rehearsal(shape)
    for operation in itertools.filterfalse(lambda it: it["do"] == "forget", operations):
        perform(player, operation)

"""What happens around sampling: the budget's room measured and used, and the model leaving after.

Plain functions without captured state: the core deep-copies options, and a wrapper that held its
patcher would keep weights alive.

The first step of a kind runs with so few weights resident that it fits whatever ComfyUI's estimate
is worth; its peak is measured, and what the budget then leaves is filled with weights, in the
middle of sampling. Later prompts begin with what was measured.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from ... import backend
from ...units import format_bytes
from .batching import batched
from .budget import Measured, make_room, make_way, over, refuse
from .forecast import Forecast
from .limits import hooked_bytes, padding
from .measured import SLACK, Need, recall, remember
from .models import largest_cast_buffer
from .patchers import WORTH, Budgeted, enforce, expect, is_dynamic
from .questions import active, controls_of, joined, of_run, of_step
from .residency import residency_of
from .staying import after_turn
from .together import can_move, capped, need_of, share_out, streaming_of

logger = logging.getLogger("lowtide")

_WRAPPER = "lowtide sampling"
_CAUTION = 1.5
"""Times ComfyUI's estimate: what its own batching allows for before it trusts a batch to fit."""


@dataclass
class Run:
    """One sampling under a budget; bytes."""

    budget: int
    question: Hashable
    start: int
    """Weights' room while nothing is measured."""
    beside: int = 0
    """The most measured so far beside the weights."""
    afresh: int = 0
    """The same for a run that has yet to make its streaming buffers."""
    resident: int | None = None
    """The fewest weights resident in a measurement."""
    together: dict[Hashable, bool] = field(default_factory=dict)
    """Kinds of steps that ran already, and whether their conds were one batch."""
    grown: set[Hashable] = field(default_factory=set)
    """Kinds of steps after which weights were moved already."""


def watch(patcher: Any) -> None:
    """Have a clone follow its residency while it samples; idempotent."""
    from comfy.patcher_extension import WrappersMP

    residency = residency_of(patcher)
    budgeted = residency is not None and residency.budget is not None
    leaves = residency is not None and residency.leave
    for kind, wrapper, wanted in (
        (WrappersMP.OUTER_SAMPLE, around_sampling, budgeted or leaves),
        (WrappersMP.PREPARE_SAMPLING, before_sampling, budgeted),
        (WrappersMP.CALC_COND_BATCH, each_step, budgeted),
    ):
        patcher.remove_wrappers_with_key(kind, _WRAPPER)
        if wanted:
            patcher.add_wrapper_with_key(kind, _WRAPPER, wrapper)


def around_sampling(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """The whole of a sampling; the models that are to leave do so at its end, errors included."""
    guider = executor.class_obj
    done = False
    try:
        result = executor(*args, **kwargs)
        done = True
        return result
    finally:
        patcher = guider.model_patcher
        conds = getattr(guider, "conds", None) or {}
        for part in (patcher, *controls_of(conds)):
            vars(part).pop("lowtide_run", None)
            vars(part).pop("lowtide_room", None)
            expect(part, False)
            residency = residency_of(part)
            if residency is not None and (residency.leave or residency.stays):
                after_turn(part, failed=not done)


def before_sampling(
    executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any
) -> Any:
    """Before the weights are loaded: how many may be."""
    residency = residency_of(model)
    if residency is not None and residency.budget is not None and not is_dynamic(model):
        enforce(model)
        _keep_no_hooked_weights(model)
        _prepare(model, residency.budget, noise_shape, conds)
    return executor(model, noise_shape, conds, *args, **kwargs)


def each_step(
    executor: Any,
    model: Any,
    conds: Any,
    x_in: Any,
    timestep: Any,
    model_options: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """One prediction of the model for all conds, measured."""

    def predict() -> Any:
        return executor(model, conds, x_in, timestep, model_options, *args, **kwargs)

    patcher: Any = getattr(model, "current_patcher", None)
    run = getattr(patcher, "lowtide_run", None)
    if run is None or backend.allocated(backend.device_of(patcher.load_device)) is None:
        return predict()
    controls = controls_of({"": [cond for some in conds for cond in some or ()]})
    question = of_step(run.question, conds, x_in, timestep, model_options)
    return _Step(run, capped(patcher, controls), question, active(conds, timestep)).take(predict)


def _keep_no_hooked_weights(patcher: Any) -> None:
    """Have weights with hooked LoRAs made anew for each step.

    The core may keep a copy of each on the device, as far as that has memory, whatever the budget.
    It puts its own choice back when the sampling ends.
    """
    from comfy.hooks import EnumHookMode

    if patcher.hook_patches:
        patcher.hook_mode = EnumHookMode.MinVram


def _prepare(patcher: Any, budget: int, noise_shape: Any, conds: Any) -> None:
    from comfy.sampler_helpers import estimate_memory

    controls = controls_of(conds)
    parts = capped(patcher, controls)
    wanted = int(estimate_memory(patcher, noise_shape, conds)[0])
    streaming = sum(streaming_of(part) for part in parts)
    # A hooked LoRA is added on the device where its weight is resident, on the host else: what was
    # measured with fewer weights resident does not hold it.
    left = budget - hooked_bytes(patcher)
    # The estimate knows nothing of what a ControlNet computes, nor of weights outside the budget.
    start = 0 if joined(patcher, conds) else max(0, left - streaming - int(_CAUTION * wanted))
    question = of_run(patcher, noise_shape, conds)
    known = recall(patcher.model, question)
    room = None if known is None else known.room(left)
    patcher.lowtide_run = Run(budget, question, start)
    share_out(parts, start if room is None else room)
    make_room(parts, budget, budget if room is None else need_of(parts, budget, room))
    for part in parts:
        expect(part)


class _Step:
    """One prediction: all conds in one batch as ever if that fits, else one after the other."""

    def __init__(self, run: Run, parts: list[Any], question: Hashable, count: int) -> None:
        self.budget = run.budget
        self.run = run
        self.parts = parts
        self.question = question
        self.count = count

    def take(self, predict: Any) -> Any:
        """The output of ``predict``, called once or, the first time, perhaps twice."""
        if self.question in self.run.together:
            return self._measure(predict, self.run.together[self.question])[0]
        together, single = self._known(True), self._known(False)
        if together is not None and together.beside <= self.budget:
            self._place(together.room(self.budget) or 0, grow=False)
            return self._measure(predict, True, grow=False)[0]
        if together is not None and single is not None and self.count > 1:
            self._place(single.room(self.budget) or 0, grow=False)
            return self._measure(predict, False, grow=False)[0]
        make_way(self.parts, self.budget, self.budget)
        self._place(self.run.start, grow=False)
        if self.count <= 1 or self.run.start > 0:
            return self._measure(predict, True)[0]
        # One after the other first: both together might be too much, and then it would be late.
        with Forecast(self.parts) as forecast:
            output, found = self._measure(predict, False, grow=False)
        all_at_once = forecast.beside(self.count)
        if found.resident + all_at_once + largest_cast_buffer() > self.budget:
            logger.warning(
                "positive and negative prompt are computed one after the other: together they "
                "might need %s, more than the budget of %s. The image may differ in its last bits",
                format_bytes(found.resident + all_at_once),
                format_bytes(self.budget),
            )
            self._remember(True, Need(all_at_once, found.resident))
            self._grow(found)
            return output
        del output
        return self._measure(predict, True)[0]

    def _known(self, together: bool) -> Need | None:
        """What was measured, if it holds for as few weights as the budget may force."""
        need = recall(self.parts[0].model, (self.question, together))
        if need is None or (need.room(self.budget) is None and need.resident > 0):
            return None
        return need

    def _remember(self, together: bool, need: Need) -> None:
        remember(self.parts[0].model, (self.question, together), need)

    def _measure(self, predict: Any, together: bool, grow: bool = True) -> tuple[Any, Measured]:
        self.run.together[self.question] = together
        with batched(self.parts, together), Measured(self.parts) as found:
            output = predict()
        if found.peak is None:
            return output, found
        self._remember(together, Need(found.afresh, found.resident))
        if found.peak > self.budget:
            several = together and self.count > 1
            if found.resident == 0 and not found.kept and not several:
                smaller = "a smaller image or a smaller batch"
                refuse(self.parts[0], self.budget, found.peak, "model", smaller)
            over(self.budget, found.peak, "model")
            self.run.together[self.question] = together and found.resident + found.kept > 0
            self.run.beside = max(self.run.beside, found.beside)
            self._place(self.budget - self.run.beside - SLACK, grow=False)
        elif grow and (found.beside > self.run.beside or self.question not in self.run.grown):
            self._grow(found)
        return output, found

    def _grow(self, found: Measured) -> None:
        """Fill what the budget leaves beside the highest measurement."""
        run = self.run
        run.grown.add(self.question)
        run.beside = max(run.beside, found.beside)
        run.afresh = max(run.afresh, found.afresh)
        lowest = found.resident if run.resident is None else min(run.resident, found.resident)
        run.resident = lowest
        remember(self.parts[0].model, run.question, Need(run.afresh, lowest))
        room = self.budget - run.beside - SLACK
        self._place(room, grow=True)
        # What the allocator adds to the weights now on the device is known only here.
        more = Measured(self.parts).base_now() - found.base
        if more > 0:
            self._place(room - more, grow=False)

    def _place(self, room: int, *, grow: bool) -> None:
        """Let the parts keep ``room`` bytes of weights between them, and move what that takes."""
        import comfy.model_management as mm

        make_way(self.parts, self.budget, need_of(self.parts, self.budget, max(0, room)))
        share_out(self.parts, room)
        device = self.parts[0].load_device
        for part in self.parts:
            if not isinstance(part, Budgeted) or not can_move(part):
                continue
            size, has = int(part.model_size()), int(part.loaded_size())
            wanted = max(0, min(size, (part.lowtide_room or 0) - padding(part)))
            if wanted == has or (wanted > has and not (grow and wanted - has > size // WORTH)):
                continue
            backend.synchronize(backend.device_of(device))
            free = mm.get_free_memory(device) - self.run.beside
            part.partially_load(device, max(0, free))
            # Blocks of other sizes than those now needed would be counted as a whole.
            mm.soft_empty_cache()

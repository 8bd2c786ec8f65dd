"""A cap on the weights a ComfyUI model keeps on the device.

A clone of the patcher gets a generated subclass of its own class that overrides
``partially_load``, and carries a ``Residency`` as attachment; both survive ``clone()``. The core
still decides what is resident (largest leaves first) and streams the rest, call by call.

DynamicVRAM patchers place their weights themselves and are never hooked.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

from ... import backend
from .exact_lora import attach
from .float8_patcher import Float8Patches
from .inference_weights import renew
from .limits import kept_under, layers_of, limit_for, padding, resident_layers
from .residency import ATTACHMENT, Residency, residency_of

_targets: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
"""What a shared model was last asked to keep on the device, in bytes."""

_placers: weakref.WeakKeyDictionary[Any, object] = weakref.WeakKeyDictionary()
"""The mark of the clone that placed a shared model's weights last."""

_expected: weakref.WeakSet[Any] = weakref.WeakSet()
"""Shared models that one of our clones is about to load."""

_FLOOR = 0.1
"""The smallest load the core takes for "partly": it reads 0 as "everything"."""

WORTH = 64
"""Growing by less than this part of the model is not worth moving anything."""

_WORTH_ANEW = 16
"""The same where other layers would take the place of those there: all is moved again, which 20
steps are to save."""

_classes: dict[type, type] = {}


class Budgeted(Float8Patches):
    """Mixed into a static patcher's class by ``with_residency``."""

    lowtide_room: int | None = None
    """Bytes of weights the budget leaves at present; ``None`` where nobody has looked."""

    def partially_load(
        self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> Any:
        """Load up to the cap; the core's own method otherwise. Returns bytes added."""
        cap = self._cap()
        model = self.model
        _expected.discard(model)
        _placers[model] = self.__dict__.setdefault("lowtide_mark", object())
        renew(model)
        if cap is None:
            return super().partially_load(
                device_to, extra_memory, force_patch_weights=force_patch_weights
            )
        used = model.model_loaded_weight_memory
        current = model.current_weight_patches_uuid
        same = current == self.patches_uuid and not force_patch_weights
        # Other weights than ours: the core unpatches, then adds what was resident to the memory.
        stale = current is not None and not same
        if (used == 0 or stale) and not model.model_lowvram:
            restore_cast_flags(model)
        # With a limit of the model's size the core would keep some of it in reserve.
        limit = limit_for(self, cap) if cap < self.model_size() else math.inf
        allowed = min(extra_memory + used, limit)
        if limit == math.inf and allowed > self.model_size():
            allowed = math.inf  # everything, however much is free
        settled = same and used > 0 and model.model_lowvram
        if not stale and used > cap:
            self._repatch_and_shrink(used - cap)
            return 0
        if settled and allowed != _targets.get(model):
            chosen, size = kept_under(self, allowed)
            adds = resident_layers(self) <= chosen
            if size - used <= self.model_size() // (WORTH if adds else _WORTH_ANEW):
                self._repatch_and_shrink(0)
                return 0
            if not adds:
                # Hazard: the core may choose larger leaves in place of small ones that are
                # resident; it would leave those on the device uncounted, and patch them twice.
                self._repatch_and_shrink(used)
                used = model.model_loaded_weight_memory
        allowed = max(_FLOOR if stale else used + _FLOOR, allowed)
        _targets[model] = allowed
        super().partially_load(device_to, allowed - used, force_patch_weights=force_patch_weights)
        if settled and used and self._uncounted():
            # The core chose others than foreseen.
            self._repatch_and_shrink(self.model_size())
            model.model_loaded_weight_memory = 0
            super().partially_load(device_to, allowed, force_patch_weights=force_patch_weights)
        surplus = model.model_loaded_weight_memory - cap
        if surplus > 0 and model.model_lowvram:
            self.partially_unload(self.offload_device, surplus)
        return model.model_loaded_weight_memory - used

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        """The core's clone. Patchers of other packs give theirs a class of their own again."""
        clone = super().clone(*args, **kwargs)
        if residency_of(clone) is not None and not is_dynamic(clone):
            enforce(clone)
        return clone

    def load(self, *args: Any, **kwargs: Any) -> Any:
        """As the core's; what it streams is patched as if it were resident."""
        loaded = super().load(*args, **kwargs)
        attach(self)
        return loaded

    def partially_unload(self, *args: Any, **kwargs: Any) -> Any:
        """As the core's; what it streams from then on is patched as if it were resident."""
        freed = super().partially_unload(*args, **kwargs)
        attach(self)
        return freed

    def _cap(self) -> int | None:
        residency = residency_of(self)
        if residency is None:
            return None
        if residency.budget is None:
            return _free_cap(self, residency)
        if self.lowtide_room is None:
            cap = residency.weights(None) or 0
        else:
            most = (
                [self.lowtide_room] if residency.cap is None else [self.lowtide_room, residency.cap]
            )
            cap = min(most)
        return max(0, cap - padding(self))

    def _uncounted(self) -> bool:
        """Whether more layers lie on the device than the core counts."""
        there = resident_layers(self)
        held = sum(layer.size for layer in layers_of(self) if layer.name in there)
        return held > int(self.model.model_loaded_weight_memory)

    def _repatch_and_shrink(self, surplus: int) -> None:
        """Take this clone's object patches, then ``surplus`` bytes off the device.

        Never through ``load()``: on a partly loaded model with a smaller target it would patch
        weights that are patched already, and a LoRA would count twice.
        """
        with self.use_ejected(skip_and_inject_on_exit_only=True):
            self.unpatch_model(self.offload_device, unpatch_weights=False)
            self.patch_model(load_weights=False)
            if surplus > 0:
                self.partially_unload(self.offload_device, surplus)

    def detach(self, unpatch_all: bool = True) -> Any:
        """Leave the shared model as an uncapped patcher expects it.

        The core detaches with ``unpatch_all=False`` when another clone takes over; a partly
        loaded model would then reach the core's own ``partially_load``, with the hazard above.
        It does so too with a clone that is dropped, while another may be computing with the
        weights: only the clone that placed them takes them off. And with one that it loads again,
        or in whose place it loads another of ours: see ``expect``.
        """
        placed = _placers.get(self.model) is self.__dict__.get("lowtide_mark", self)
        placed = placed and self.model not in _expected
        if placed and self.model.model_lowvram and residency_of(self) is not None:
            unpatch_all = True
        detached = super().detach(unpatch_all=unpatch_all)
        if unpatch_all:
            forget(self.model)
        return detached

    def get_free_memory(self, device: Any) -> Any:
        """Free bytes as the core's batching should see them: never more than the budget leaves."""
        free = super().get_free_memory(device)
        residency = residency_of(self)
        if residency is None or residency.budget is None:
            return free
        held = backend.allocated(backend.device_of(device))
        return free if held is None else min(free, max(0, residency.budget - held))


def _free_cap(patcher: Any, residency: Residency) -> int | None:
    """The cap without a budget: no more than the device has free beside the core's own reserve."""
    if residency.cap is None or not residency.by_free:
        return residency.cap
    import comfy.model_management as mm

    free = mm.get_free_memory(patcher.load_device) + patcher.model.model_loaded_weight_memory
    return int(max(0, min(residency.cap, free - mm.minimum_inference_memory())))


def is_dynamic(patcher: Any) -> bool:
    """Whether the core places this patcher's weights page by page (DynamicVRAM)."""
    asks = getattr(patcher, "is_dynamic", None)
    return bool(asks()) if asks is not None else False


def with_residency(patcher: Any, residency: Residency) -> Any:
    """A clone of a static patcher under ``residency``; ``patcher`` stays as it is."""
    clone = marked(patcher, residency)
    enforce(clone)
    return clone


def marked(patcher: Any, residency: Residency) -> Any:
    """A clone that only carries ``residency``, for its cleanup policy; no cap is kept."""
    clone = patcher.clone()
    clone.set_attachments(ATTACHMENT, residency)
    return clone


def enforce(patcher: Any) -> None:
    """Give the patcher the class that keeps the cap, if it has not got it."""
    base = type(patcher)
    if not issubclass(base, Budgeted):
        known = _classes.get(base)
        if known is None:
            known = _classes[base] = type(f"Budgeted{base.__name__}", (Budgeted, base), {})
        patcher.__class__ = known


def expect(patcher: Any, coming: bool = True) -> None:
    """Say that this patcher is about to be loaded: what is resident of its model stays until then.

    Only where a ``Budgeted`` one follows: it alone can go on from a partly loaded model.
    """
    if coming and isinstance(patcher, Budgeted):
        _expected.add(patcher.model)
    else:
        _expected.discard(patcher.model)


def forget(model: Any) -> None:
    """Remove what the mixin remembers of the shared model."""
    _targets.pop(model, None)
    _placers.pop(model, None)


def restore_cast_flags(model: Any) -> int:
    """Undo cast flags left by an earlier load; returns how many there were.

    Hazard: with such a flag present the core takes a leaf for streamed already and skips its
    LoRA.
    """
    count = 0
    for module in model.modules():
        if hasattr(module, "prev_comfy_cast_weights"):
            module.comfy_cast_weights = module.prev_comfy_cast_weights
            del module.prev_comfy_cast_weights
            count += 1
    return count

"""Models that stay on the device when their turn under a budget is over, and who gives way to whom.

A budget without a level has no model leave for its own sake. What was there for one turn stays for
the next of its kind, and each turn takes off the device what it has no room beside, as far as it
was measured; where nothing was, it has the device for itself. Which model comes again latest gives
way first.

They stay within prompts that Lowtide follows, and while nodes run of which it is known that they
use the device only through models that are under a budget: everybody else finds it empty. With the
policy ``always`` they stay only for a later node of the same prompt.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .models import empty_caches, leave_device, samples
from .patchers import Budgeted, forget, is_dynamic
from .residency import residency_of

if TYPE_CHECKING:
    from .prompt import Prompt

logger = logging.getLogger("lowtide")

_stayed: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()
"""The patcher with which a shared model stayed last."""

_TURNS = ("text encoder", "model", "vae")
"""In the order of a prompt."""


def after_turn(patcher: Any, *, failed: bool = False) -> None:
    """The model's turn is over: off the device, unless it stays."""
    if failed or not _stays(patcher):
        _stayed.pop(patcher.model, None)
        leave_device(patcher)
    else:
        _stayed[patcher.model] = weakref.ref(patcher)
        empty_caches()


def resident() -> list[Any]:
    """Patchers of models that stayed, or whose turn it is."""
    import comfy.model_management as mm

    found = [entry.model for entry in list(mm.current_loaded_models)]
    return [it for it in found if it is not None and _may_stay(it) and it.loaded_size() > 0]


def bytes_beside(parts: Sequence[Any]) -> int:
    """Bytes of the weights that stayed on the device of ``parts``, theirs not among them."""
    return sum(int(other.loaded_size()) for other in _others(parts))


def give_way(parts: Sequence[Any], missing: int) -> None:
    """Take ``missing`` bytes of what stayed off the device of ``parts``, as far as there is any."""
    turn, left = _turn_of(parts[0]), False
    for other in sorted(_others(parts), key=lambda other: soon(turn, _turn_of(other))):
        if missing <= 0:
            break
        there, left = int(other.loaded_size()), True
        if missing < there and isinstance(other, Budgeted):
            missing -= int(other.partially_unload(other.offload_device, missing))
        else:
            leave_device(other)
            missing -= there
    if left:
        empty_caches()


def note_turn(peak: int, beside: int) -> None:
    """Tell the prompt that runs of a turn: bytes at its peak, and of what stayed beside it."""
    from .executor import running

    prompt = running()
    if prompt is not None:
        prompt.note_turn(peak, beside)


def all_leave() -> None:
    """Take all that stayed off their devices."""
    for patcher in resident():
        if not samples(patcher):
            leave_device(patcher)


def needed_again(patcher: Any) -> bool:
    """Whether a node that has yet to begin has a turn for this model, which stays until then."""
    prompt = _among_acquaintances()
    if prompt is None or not _may_stay(patcher):
        return False
    try:
        later = prompt.needed(begun=False)
    except Exception:
        logger.exception("Lowtide does not know what comes next; %s leaves", type(patcher.model))
        return False
    return any(patcher.is_clone(other) for other in later or ())


def orphans_leave() -> None:
    """Take models off their devices whose clone stayed there and is gone: its node runs anew.

    The core hands them on to the patcher that the clone was made from, which knows no budget and
    cannot go on from a partly loaded model.
    """
    import comfy.model_management as mm

    for entry in list(mm.current_loaded_models):
        patcher = entry.model
        clone = None if patcher is None else _stayed.get(patcher.model)
        if clone is not None and clone() is None:
            del _stayed[patcher.model]
            if residency_of(patcher) is None:
                leave_device(patcher)
                forget(patcher.model)


def _stays(patcher: Any) -> bool:
    """Whether a model stays now."""
    residency = residency_of(patcher)
    if residency is None or not _may_stay(patcher) or not patcher.loaded_size():
        return False
    if residency.cleanup == "always":
        return needed_again(patcher)
    return _among_acquaintances() is not None


def _among_acquaintances() -> Prompt | None:
    """The prompt that runs, if it is followed and none of its nodes that run is a stranger."""
    from .executor import running

    prompt = running()
    if prompt is None or prompt.executor is None or prompt.strangers:
        return None
    return prompt


def _may_stay(patcher: Any) -> bool:
    residency = residency_of(patcher)
    if residency is None or not residency.stays or is_dynamic(patcher):
        return False
    return not patcher.hook_patches  # LoRAs of hooks come and go with the steps


def _others(parts: Sequence[Any]) -> Iterator[Any]:
    for other in resident():
        elsewhere = other.load_device != parts[0].load_device
        if not (elsewhere or samples(other) or any(part.is_clone(other) for part in parts)):
            yield other


def _turn_of(patcher: Any) -> int:
    residency = residency_of(patcher)
    return _TURNS.index("model" if residency is None else residency.turn)


def soon(now: int, turn: int) -> tuple[bool, int]:
    """Sorts turns by when they come again after ``now``, the latest first; of 0, 1 and 2.

    Text encoders (0) before all: as a rule the next prompt has the same texts, and needs none.
    """
    return (turn != 0, -((turn - now) % len(_TURNS) or len(_TURNS)))

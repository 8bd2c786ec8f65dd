"""A text encoder that leaves the device when it has encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .budget import Turn
from .residency import residency_of
from .staying import after_turn, needed_again

if TYPE_CHECKING:
    _Clip = Any
else:
    _Clip = object

_classes: dict[type, type] = {}


class LeavingClip(_Clip):
    """Mixed into a CLIP's class: what encodes ends with the encoder off the device."""

    lowtide_working: bool = False
    lowtide_stays: bool = False

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        """The core's clone, which would forget the class."""
        clone = super().clone(*args, **kwargs)
        clone.__class__ = type(self)
        clone.lowtide_stays = self.lowtide_stays
        return clone

    def encode_from_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """As the core's."""
        return self._and_leave(super().encode_from_tokens, args, kwargs)

    def encode_from_tokens_scheduled(self, *args: Any, **kwargs: Any) -> Any:
        """As the core's."""
        return self._and_leave(super().encode_from_tokens_scheduled, args, kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the core's, where it has one."""
        residency = residency_of(self.patcher)
        # A pass for each token: here weights that stay save a transfer each time.
        beside = None if residency is None else residency.streaming + residency.activations
        return self._and_leave(super().generate, args, kwargs, beside)

    def _and_leave(
        self,
        work: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        estimate: int | None = None,
    ) -> Any:
        if self.lowtide_stays or self.lowtide_working:  # one way to encode may go through another
            return work(*args, **kwargs)
        question = (work.__name__, _shape_of(args[0] if args else kwargs.get("tokens")))
        again = self._keeps_a_part()
        turn = Turn(self.patcher, question, "text encoder", "a shorter prompt", estimate, again)
        done = False
        self.lowtide_working = True
        try:
            turn.begin()
            result = work(*args, **kwargs)
            done = True
            return result
        finally:
            self.lowtide_working = False
            try:
                turn.end(failed=not done)
            finally:
                after_turn(self.patcher, failed=not done)

    def _keeps_a_part(self) -> bool:
        """Whether weights that stay save a transfer: now, or when a later node encodes.

        Older cores compute where the embeddings lie, which may be the host.
        """
        if not any(hasattr(part, "execution_device") for part in self.cond_stage_model.modules()):
            return False
        return bool(self.patcher.loaded_size()) or needed_again(self.patcher)


def _shape_of(tokens: Any) -> Any:
    """How many prompts of how many tokens each of the encoders gets."""
    if not isinstance(tokens, dict):
        return None
    return tuple(
        (name, len(part), max((len(row) for row in part if hasattr(row, "__len__")), default=0))
        for name, part in sorted(tokens.items())
        if hasattr(part, "__len__")
    )


def leaving(clip: Any) -> Any:
    """A clone of a CLIP that leaves the device when idle; ``clip`` stays as it is."""
    clone = clip.clone()
    base = type(clone)
    if not issubclass(base, LeavingClip):
        known = _classes.get(base)
        if known is None:
            known = _classes[base] = type(f"Leaving{base.__name__}", (LeavingClip, base), {})
        clone.__class__ = known
    clone.lowtide_stays = False
    return clone


def staying(clip: Any) -> Any:
    """A clone of a CLIP of ``leaving`` that stays on the device again; any other one as it is."""
    if not isinstance(clip, LeavingClip):
        return clip
    clone = clip.clone()
    # Another pack may have put a class of its own on top of ours, so the class stays.
    clone.lowtide_stays = True
    return clone

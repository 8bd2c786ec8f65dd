"""A text encoder that leaves the device when it has encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .budget import make_room
from .models import leave_device
from .patchers import residency_of

if TYPE_CHECKING:
    _Clip = Any
else:
    _Clip = object

_classes: dict[type, type] = {}


class LeavingClip(_Clip):
    """Mixed into a CLIP's class: what encodes ends with the encoder off the device."""

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        """The core's clone, which would forget the class."""
        clone = super().clone(*args, **kwargs)
        clone.__class__ = type(self)
        return clone

    def encode_from_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """As the core's."""
        return self._and_leave(super().encode_from_tokens, args, kwargs)

    def encode_from_tokens_scheduled(self, *args: Any, **kwargs: Any) -> Any:
        """As the core's."""
        return self._and_leave(super().encode_from_tokens_scheduled, args, kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the core's, where it has one."""
        return self._and_leave(super().generate, args, kwargs)

    def _and_leave(self, work: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        residency = residency_of(self.patcher)
        if residency is not None:
            make_room(self.patcher, residency.budget, residency.budget or 0)
        try:
            return work(*args, **kwargs)
        finally:
            leave_device(self.patcher)


def leaving(clip: Any) -> Any:
    """A clone of a CLIP that leaves the device when idle; ``clip`` stays as it is."""
    clone = clip.clone()
    base = type(clone)
    if not issubclass(base, LeavingClip):
        known = _classes.get(base)
        if known is None:
            known = _classes[base] = type(f"Leaving{base.__name__}", (LeavingClip, base), {})
        clone.__class__ = known
    return clone

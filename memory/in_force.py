"""Which optimizers are in force on a pipeline, or on what it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .adapters import pipelines

if TYPE_CHECKING:
    from .optimizer import MemoryOptimizer

MARK = "_lowtide_optimizer"
"""The attribute of a pipeline that names the optimizer in force on it; its components have a weak
reference there, since other pipelines may be made of them, or copies.

A registry here would keep both, and what they hold on the device, for ever: each refers to the
other, and as a plain cycle they can be collected.
"""


def holders(pipe: Any) -> Iterator[MemoryOptimizer]:
    """The optimizers in force on the pipeline or on any of its components."""
    whole = vars(pipe).get(MARK)
    if whole is not None:
        yield whole
    for part in pipelines.modules_of(pipe).values():
        mark = vars(part).get(MARK)
        holder = None if mark is None else mark()
        if holder is not None:
            yield holder

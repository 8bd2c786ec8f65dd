"""Whether the conds of a step are computed in one batch, decided apart from the budget.

The core batches by free memory. Under a budget most of the weights are elsewhere, so that more is
free than without one; and the last bits of an image depend on the batch. So the core is answered
as if all weights were there: what would be one batch without a budget is one with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_NAME = "memory_required"
_CAUTION = 1.5
"""The core's own factor."""


@contextmanager
def batched(parts: Sequence[Any], together: bool) -> Iterator[None]:
    """Over a step: its conds in one batch where the core would do so without a budget, or singly.

    ``parts`` are the patchers in use, the sampled one first. Its model answers for the length of
    the block, which is the one thing all versions of the core ask.
    """
    import comfy.model_management as mm

    model = parts[0].model
    own = vars(model).get(_NAME)
    required = getattr(model, _NAME)
    free = mm.get_free_memory(parts[0].load_device)
    elsewhere = sum(int(part.model_size()) - int(part.loaded_size()) for part in parts)
    usually = max(free - elsewhere, min(free, mm.minimum_inference_memory()))

    def answer(*args: Any, **kwargs: Any) -> float:
        fits = together and required(*args, **kwargs) * _CAUTION < usually
        return -1.0 if fits else math.inf

    setattr(model, _NAME, answer)
    try:
        yield
    finally:
        if own is None:
            delattr(model, _NAME)
        else:
            setattr(model, _NAME, own)

"""Cases: what is remembered of earlier runs, and for how long."""

from __future__ import annotations

import gc
import weakref

from budgets import MODEL, SIZE, budgeted, clean
from diffusion import make, sample, unload
from lowtide.memory.adapters.comfy import measured


def case_measurements_keep_no_model_alive() -> None:
    clean()
    gc.collect()
    gc.disable()
    try:
        one = make()
        sample(budgeted(one, SIZE), steps=1)
        unload()
        assert len(measured._needs) == 1
        model = weakref.ref(one.model)
        del one
        if model() is not None:  # the sampler's own cycles
            gc.collect()
        assert model() is None
        assert len(measured._needs) == 0
    finally:
        gc.enable()


def case_the_store_forgets_the_oldest() -> None:
    clean()
    for index in range(measured.MOST + 5):
        measured.remember(MODEL.model, index, measured.Need(index, 0))
    assert measured.recall(MODEL.model, 4) is None
    assert measured.recall(MODEL.model, 5) is not None
    with_more = measured.remember(MODEL.model, 5, measured.Need(3, 100))
    assert with_more == measured.Need(5, 0), "a smaller need with more resident says less"
    assert measured.remember(MODEL.model, 5, measured.Need(2, 0)) == measured.Need(2, 0)
    clean()

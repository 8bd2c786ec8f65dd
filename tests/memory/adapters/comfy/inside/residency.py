"""Cases: the cap on resident weights, with and without a LoRA."""

from __future__ import annotations

import comfy.model_management as mm
from lowtide.memory.adapters.comfy import patchers
from lowtide.memory.adapters.comfy.patchers import with_residency
from lowtide.memory.adapters.comfy.residency import ATTACHMENT, Residency, residency_of
from small import (
    KEYS,
    close,
    forward,
    load,
    lora,
    patcher,
    restored,
    run,
    unload,
    weights,
)

BASE = patcher()
BEFORE = weights(BASE)
SIZE = BASE.model_size()
PLAIN = run(BASE)
unload()
WITH_LORA = lora(BASE)
PATCHED = run(WITH_LORA)
unload()
assert restored(BASE, BEFORE)
assert close(PLAIN, PATCHED) > 0.05


def capped(one, cap: int):
    return with_residency(one, Residency(cap=cap))


def clean() -> None:
    unload()
    assert restored(BASE, BEFORE)
    assert BASE.model not in patchers._targets


def case_residents_stay_under_the_cap() -> None:
    for share in (2, 3, 4, 7):
        clone = capped(BASE, SIZE // share)
        assert close(run(clone), PLAIN) == 0
        layer = BASE.model.diffusion_model.blocks[0].weight.nbytes * 1.1
        assert SIZE // share - layer < clone.loaded_size() <= SIZE // share, share
        assert clone.model.model_lowvram
        before = clone.loaded_size()
        load(clone)
        assert clone.loaded_size() == before, "loading again changed what is resident"
        clean()


def case_a_cap_over_the_size_loads_everything() -> None:
    clone = capped(BASE, SIZE * 2)
    run(clone)
    assert clone.loaded_size() == SIZE
    assert not clone.model.model_lowvram
    clean()


def case_a_cap_of_nothing_streams_everything() -> None:
    clone = capped(WITH_LORA, 0)
    assert close(run(clone), PATCHED) == 0
    assert clone.loaded_size() == 0
    clean()


def case_the_original_has_no_cap_and_its_own_class() -> None:
    kind = type(BASE)
    clone = capped(BASE, 1)
    assert type(BASE) is kind
    assert residency_of(BASE) is None
    assert isinstance(clone, kind)
    assert type(clone.clone()) is type(clone)
    assert residency_of(clone.clone()) == Residency(cap=1)
    assert type(capped(clone, 2)) is type(clone)


def case_a_lora_before_the_cap_is_kept() -> None:
    clone = capped(WITH_LORA, SIZE // 2)
    assert close(run(clone), PATCHED) == 0
    assert 0 < clone.loaded_size() < SIZE // 2
    clean()


def case_a_lora_after_the_cap_is_kept() -> None:
    clone = lora(capped(BASE, SIZE // 2))
    assert residency_of(clone) is not None
    assert close(run(clone), PATCHED) == 0
    assert 0 < clone.loaded_size() < SIZE // 2
    clean()


def case_the_same_clone_grows_shrinks_and_keeps_its_lora() -> None:
    clone = capped(WITH_LORA, SIZE // 2)
    run(clone)
    half = clone.loaded_size()
    slightly = half + 1000
    for cap in (slightly, SIZE * 3 // 4, SIZE // 8, SIZE // 2, 0, SIZE // 4):
        clone.set_attachments(ATTACHMENT, Residency(cap=cap))
        assert close(run(clone), PATCHED) == 0, f"cap {cap} of {SIZE}"
        assert clone.loaded_size() <= max(cap, 0), (cap, clone.loaded_size())
    clean()


def case_clones_with_other_caps_take_over_from_each_other() -> None:
    for cap in (SIZE // 2, SIZE // 8, SIZE * 3 // 4):
        clone = capped(WITH_LORA, cap)
        assert close(run(clone), PATCHED) == 0
        assert clone.loaded_size() <= cap
    clean()


def case_little_free_memory_does_not_double_a_lora() -> None:
    clone = capped(WITH_LORA, SIZE // 2)
    load(clone)
    for extra in (1.0, 1024.0, SIZE / 16):
        clone.partially_load(clone.load_device, extra)
        assert close(run(clone), PATCHED) == 0, f"{extra} bytes more"
    clean()


def case_a_full_model_gives_way_to_a_capped_clone() -> None:
    run(BASE)
    assert BASE.loaded_size() == SIZE
    clone = capped(BASE, SIZE // 4)
    assert close(run(clone), PLAIN) == 0
    assert clone.loaded_size() <= SIZE // 4
    clean()


def case_a_full_model_gives_way_to_a_capped_clone_with_a_lora() -> None:
    run(BASE)
    clone = capped(WITH_LORA, SIZE // 4)
    assert close(run(clone), PATCHED) == 0
    assert clone.loaded_size() <= SIZE // 4, clone.loaded_size()
    clean()


def case_the_original_runs_as_ever_after_its_clone() -> None:
    for one, expected in ((BASE, PLAIN), (WITH_LORA, PATCHED)):
        run(capped(one, SIZE // 4))
        assert close(run(one), expected) == 0
        assert one.loaded_size() == SIZE
        assert not one.model.model_lowvram
        assert not any(hasattr(m, "prev_comfy_cast_weights") for m in one.model.modules())
        clean()


def case_little_room_for_the_original_after_its_clone() -> None:
    """The core's own partial load after ours must find nothing half done."""
    run(capped(WITH_LORA, SIZE // 4))
    taken_over = mm.current_loaded_models.pop(0)
    taken_over.model.detach(unpatch_all=False)
    taken_over.model_finalizer.detach()
    WITH_LORA.partially_load(WITH_LORA.load_device, SIZE / 2)
    assert close(forward(WITH_LORA), PATCHED) < 1e-3  # the core's own rounding
    assert 0 < WITH_LORA.loaded_size() < SIZE
    WITH_LORA.detach()
    clean()


def case_stale_cast_flags_do_not_lose_a_lora() -> None:
    """As an encoder with forced casts leaves them: full load, unload, then a partial load."""
    forced = WITH_LORA.clone()
    forced.force_cast_weights = True
    run(forced)
    unload()
    stale = sum(hasattr(m, "prev_comfy_cast_weights") for m in BASE.model.modules())
    assert stale, "the core cleans up by itself now: this case proves nothing any more"
    clone = capped(WITH_LORA, SIZE // 4)
    assert close(run(clone), PATCHED) == 0
    unload()
    patchers.restore_cast_flags(BASE.model)


def case_cast_flags_of_a_model_still_resident_do_not_lose_a_lora() -> None:
    """As above, but with the weights of the forced encoder still on the device."""
    forced = BASE.clone()
    forced.force_cast_weights = True
    run(forced)
    clone = capped(WITH_LORA, SIZE // 4)
    assert close(run(clone), PATCHED) == 0
    unload()
    patchers.restore_cast_flags(BASE.model)


def case_saving_writes_every_lora_whatever_is_resident() -> None:
    """Older cores write LoRAs into the weights first, newer ones as they save each of them."""
    writes_first = not hasattr(BASE, "model_state_dict_for_saving")
    expected = {}
    for one in (WITH_LORA, capped(WITH_LORA, SIZE // 3), capped(WITH_LORA, 0)):
        mm.load_models_gpu([one], force_patch_weights=writes_first)
        state = one.model.state_dict() if writes_first else one.model_state_dict_for_saving()
        saved = {key: state[key].to("cpu").clone() for key in KEYS}
        expected = expected or saved
        assert all(close(saved[key], expected[key]) < 1e-6 for key in KEYS)
        assert close(run(one), PATCHED) == 0, "a LoRA was lost or counted twice after saving"
        clean()


def case_dynamic_patchers_are_recognised() -> None:
    assert not patchers.is_dynamic(BASE)
    BASE.is_dynamic = lambda: True
    try:
        assert patchers.is_dynamic(BASE)
    finally:
        del BASE.is_dynamic


def case_nothing_keeps_an_unused_clone_alive() -> None:
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        one = patcher()
        clone = with_residency(one, Residency(cap=SIZE // 4, budget=SIZE))
        run(clone)
        unload()
        model = weakref.ref(one.model)
        del one, clone
        assert model() is None, "a reference cycle keeps the weights until a collection"
    finally:
        gc.enable()


def case_a_clone_that_dies_leaves_the_model_to_the_one_that_loaded_it() -> None:
    for last in (False, True):
        old, new = capped(BASE, SIZE // 3), capped(WITH_LORA, SIZE // 2)
        if last:
            run(old)
        run(new)
        held = new.loaded_size()
        del old
        now = new.loaded_size()
        assert new.model.model_lowvram and now == held > 0
        assert close(forward(new), PATCHED) == 0
        clean()


def case_a_clone_that_dies_takes_what_it_loaded_along() -> None:
    old = capped(WITH_LORA, SIZE // 2)
    run(old)
    del old
    assert not BASE.model.model_lowvram
    assert restored(BASE, BEFORE)
    assert close(run(BASE), PLAIN) == 0
    clean()

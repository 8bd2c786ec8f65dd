"""Cases: how long FP8 codes and originals live, and what merging and saving make of them."""

from __future__ import annotations

import gc
import weakref

import comfy.model_management as mm
import torch
from float8 import BASE, SIZE, clean, off, stored
from lowtide.memory.adapters.comfy.patchers import with_residency
from lowtide.memory.adapters.comfy.residency import Residency
from lowtide.memory.errors import LowtideError
from lowtide.memory.levels import MemoryOptimizationConfig
from small import KEYS, forward, load, lora, patcher, run, unload

PERMANENT = MemoryOptimizationConfig(fp8_storage=True, keep_originals=False)
KEPT = {key: weight.clone() for key, weight in BASE.model.state_dict().items() if key in KEYS}
SAVES = hasattr(BASE, "model_state_dict_for_saving")


def case_codes_are_made_once_shared_and_dropped_with_the_last_clone() -> None:
    gc.collect()
    one = patcher()
    first, _ = stored(one)
    second, _ = stored(one)
    name = f"{KEYS[0].removesuffix('.weight')}._parameters"
    codes = weakref.ref(first.object_patches[name]["weight"])
    assert second.object_patches[name]["weight"] is codes()
    images = [run(first), run(second), run(lora(second)), run(second.clone())]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[3])
    unload()
    gc.collect()
    gc.disable()
    try:
        del first
        assert codes() is not None
        del second
        assert codes() is None, gc.get_referrers(codes())
    finally:
        gc.enable()


def case_the_model_is_dropped_without_the_collector() -> None:
    one = patcher()
    clone = lora(stored(one)[0])
    run(clone)
    unload()
    gc.collect()
    layer = weakref.ref(one.model.diffusion_model.blocks[0])
    gc.disable()
    try:
        del one, clone
        assert layer() is None
    finally:
        gc.enable()


def case_merging_takes_originals_whether_or_not_the_codes_are_loaded() -> None:
    clone, _ = stored(lora(BASE))
    images = []
    for loaded in (False, True):
        if loaded:
            load(clone)
        merged = patcher()
        patches = clone.get_key_patches("diffusion_model.")
        assert set(patches) <= set(BASE.model.state_dict())
        clean()
        merged.add_patches(patches, 0.5, 0.5)
        images.append(run(merged))
        unload()
    assert torch.equal(images[0], images[1])
    exact = patcher()
    exact.add_patches(lora(BASE).get_key_patches("diffusion_model."), 0.5, 0.5)
    assert torch.equal(run(exact), images[0])
    unload()


def case_what_the_original_gives_for_merging_while_codes_are_loaded_stays_right() -> None:
    clone, _ = stored(BASE)
    load(clone)
    patches = BASE.get_key_patches("diffusion_model.blocks.0.weight")
    clean()
    merged = patcher()
    merged.add_patches(patches, 1.0, 0.0)
    load(merged)
    assert off(merged.model.diffusion_model.blocks[0].weight.cpu(), KEPT[KEYS[0]]) < 0.01
    unload()


def case_saving_gives_weights_or_says_why_not() -> None:
    clone, _ = stored(lora(BASE))
    deltas = lora(BASE).patches
    exact = {key: weight.cpu() + deltas[key][0][1][1][0] for key, weight in KEPT.items()}
    for one in (clone, with_residency(clone, Residency(cap=0))) if SAVES else ():
        load(one)
        found = one.model_state_dict_for_saving(one.model.diffusion_model, "diffusion_model.")
        for key in KEYS:
            tensor = found[key.removeprefix("diffusion_model.")].to("cpu")
            assert tensor.dtype == torch.float32
            assert off(tensor, exact[key]) < 0.01
        assert not any("lowtide" in key for key in found)
        clean()
    try:
        mm.load_models_gpu([clone], force_patch_weights=True)
    except LowtideError as error:
        assert "Save the MODEL that goes into" in str(error)
    else:
        raise AssertionError("codes would be saved")
    clean()


def case_dropped_originals_stay_right_for_every_patcher() -> None:
    one = patcher()
    kept, _ = stored(one)
    expected, expected_lora = run(kept), run(lora(kept))
    unload()
    del kept
    original = weakref.ref(one.model.diffusion_model.blocks[0].weight)
    early = lora(one)
    clone, entry = stored(one, PERMANENT)
    gc.collect()
    assert original() is None
    assert one.model_size() == mm.module_size(one.model) == clone.model_size()
    for patched, exact in ((one, expected), (clone, expected), (one.clone(), expected)):
        assert torch.equal(run(patched), exact)
        unload()
    for patched in (early, lora(one), lora(clone), stored(lora(one))[0]):
        assert off(run(patched), expected_lora) < 1e-6
        unload()
        partly = with_residency(patched, Residency(cap=SIZE // 8))
        assert off(run(partly), expected_lora) < 1e-6
        assert torch.equal(run(one), expected)
        unload()
    try:
        entry.undo()
    except LowtideError as error:
        assert "Load the model again" in str(error)
    else:
        raise AssertionError("undone without originals")
    assert "dropped" in entry.detail


def case_dropped_originals_and_the_cores_own_streaming() -> None:
    one = patcher()
    stored(one, PERMANENT)
    base = lora(one)
    image = run(base)
    unload()
    base.partially_load(base.load_device, SIZE / 10)
    assert base.model.model_lowvram
    assert off(forward(base), image) < 1e-6
    base.partially_unload(base.offload_device, SIZE / 20)
    assert off(forward(base), image) < 1e-6
    base.detach()


def case_a_lora_of_a_clone_that_is_dropped_while_loaded_goes_too() -> None:
    one = patcher()
    plain = run(one)
    clone = lora(stored(one)[0])
    assert not torch.equal(run(clone), plain)
    load(clone)
    del clone
    gc.collect()
    unload()
    assert not any(getattr(layer, "weight_function", ()) for layer in one.model.modules())
    assert torch.equal(run(one), plain)


def case_a_dropped_loras_clone_leaves_dropped_originals_right() -> None:
    one = patcher()
    stored(one, PERMANENT)
    plain = run(one)
    for given in (one, stored(one)[0]):
        clone = lora(given)
        assert not torch.equal(run(clone), plain)
        load(clone)
        del clone
        gc.collect()
        assert torch.equal(run(one), plain)
        unload()
        assert torch.equal(run(one), plain)
        unload()

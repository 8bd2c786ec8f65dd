"""Cases: a LoRA gives the same bits whether its layer is resident or streamed."""

from __future__ import annotations

import gc
import weakref

import torch
from diffusion import make, sample, unload, with_loras
from lowtide.memory.adapters.comfy import exact_lora
from lowtide.memory.adapters.comfy.patchers import with_residency
from lowtide.memory.adapters.comfy.residency import Residency

TYPES = {
    "half": (torch.float16, None),
    "bfloat16": (torch.bfloat16, None),
    "full": (torch.float32, None),
    "half for bfloat16": (torch.float16, torch.bfloat16),
    "bfloat16 for full": (torch.bfloat16, torch.float32),
    "fp8 for bfloat16": (torch.float8_e4m3fn, torch.bfloat16),
}


def stored(dtype: torch.dtype, compute: torch.dtype | None):
    import comfy.model_management as mm

    patcher = make(torch.float32)
    model = patcher.model
    if compute is None:
        compute = dtype
    for layer in model.diffusion_model.modules():
        own = dict(layer.named_parameters(recurse=False))
        for name, weight in own.items():
            layer.register_parameter(
                name, torch.nn.Parameter(weight.to(dtype), requires_grad=False)
            )
        if hasattr(layer, "comfy_cast_weights"):
            layer.comfy_cast_weights = True
    model.manual_cast_dtype = compute
    model.diffusion_model.dtype = dtype
    patcher.size = mm.module_size(model)
    return patcher


def case_every_type_gives_the_resident_bits() -> None:
    for name, (dtype, compute) in TYPES.items():
        model = stored(dtype, compute)
        patched = with_loras(model, 2)
        plain, expected = sample(model, steps=1), None
        unload()
        expected = sample(patched, steps=1)
        unload()
        assert expected.isfinite().all(), name
        assert not torch.equal(plain, expected), name
        for share in (0, 3):
            cap = int(patched.model_size()) * share // 4
            found = sample(with_residency(patched, Residency(cap=cap)), steps=1)
            assert torch.equal(found, expected), (name, share, (found - expected).abs().max())
            unload()
        assert torch.equal(sample(model, steps=1), plain), name
        unload()


def case_only_the_clone_gets_exact_patches_and_they_go_with_it() -> None:
    model = make()
    patched = with_loras(model, 1)
    clone = with_residency(patched, Residency(cap=0))
    sample(clone, steps=1)
    found = [
        patch for layer in model.model.modules() for patch in vars(layer).get("weight_function", ())
    ]
    assert found
    assert all(isinstance(patch, exact_lora.ExactPatch) for patch in found)
    del found
    unload()
    assert not any(vars(m).get("weight_function") for m in model.model.modules())


def case_a_layers_own_patches_are_left_alone() -> None:
    model = make()
    patched = with_residency(with_loras(model, 1), Residency(cap=0))
    sample(patched, steps=1)
    layer = next(m for m in model.model.modules() if vars(m).get("weight_function"))
    own = lambda weight: weight  # noqa: E731
    layer.weight_function = [own]
    assert exact_lora.attach(patched) == 0
    assert layer.weight_function == [own]
    unload()


def case_a_patch_does_not_keep_its_layer_alive() -> None:
    gc.collect()
    gc.disable()
    try:
        model = make()
        clone = with_residency(with_loras(model, 1), Residency(cap=0))
        clone.partially_load(clone.load_device, 1e30)
        clone.detach()
        found = weakref.ref(model.model)
        del model, clone
        assert found() is None
    finally:
        gc.enable()

"""Cases: a MODEL whose layers are stored in FP8."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.ops
import torch
from lowtide.memory import float8 as codec
from lowtide.memory.adapters.comfy import float8
from lowtide.memory.adapters.comfy.float8_layer import Float8Layer, is_patch
from lowtide.memory.adapters.comfy.limits import streaming_bytes
from lowtide.memory.adapters.comfy.patchers import with_residency
from lowtide.memory.adapters.comfy.residency import Residency
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.strategies.base import Applied, Skipped
from small import (
    DEVICE,
    KEYS,
    LAYERS,
    WIDTH,
    forward,
    load,
    lora,
    patcher,
    restored,
    run,
    unload,
    weights,
)

CONFIG = MemoryOptimizationConfig(fp8_storage=True)
BASE = patcher()
BEFORE = weights(BASE)
SIZE = BASE.model_size()
PLAIN = run(BASE)
unload()
PATCHED = run(lora(BASE))
unload()
LAYER = WIDTH * WIDTH


def stored(one, config=CONFIG):
    entries = []
    clone = float8.store(one, config, entries)
    (entry,) = entries
    return clone, entry


def clean(one=BASE) -> None:
    unload()
    if one is BASE:
        assert restored(BASE, BEFORE)
    for module in one.model.modules():
        assert "prev_comfy_cast_weights" not in vars(module)
        assert not [f for f in getattr(module, "weight_function", ()) if is_patch(f)]
    if one is BASE:
        assert not any(isinstance(module, Float8Layer) for module in BASE.model.modules())


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    return codec.relative_error(found, exact)


def case_images_lose_little_and_the_original_is_as_it_was() -> None:
    clone, entry = stored(BASE)
    assert isinstance(entry, Applied), entry
    found = run(clone)
    assert 0 < off(found, PLAIN) < 0.01, off(found, PLAIN)
    layer = BASE.model.diffusion_model.blocks[0]
    assert isinstance(layer, comfy.ops.disable_weight_init.Linear)
    assert layer.weight.dtype == torch.float8_e4m3fn
    clean()
    assert torch.equal(run(BASE), PLAIN)
    assert torch.equal(run(clone), found)
    assert clone.loaded_size() == clone.model_size()
    assert torch.equal(run(BASE), PLAIN)
    assert BASE.loaded_size() == SIZE
    clean()


def case_sizes_are_those_of_the_codes() -> None:
    clone, _ = stored(BASE)
    assert clone.model_size() == SIZE - LAYERS * (3 * LAYER - 4 * WIDTH)
    assert BASE.model_size() == SIZE
    load(clone)
    assert clone.loaded_size() == mm.module_size(clone.model) == clone.model_size()
    assert clone.clone().model_size() == clone.model_size()
    clean()


def case_a_lora_is_kept_in_both_orders_whatever_is_resident() -> None:
    first = lora(stored(BASE)[0])
    second = stored(lora(BASE))[0]
    images = []
    for one in (first, second):
        size = one.model_size()
        images.append(run(one))
        clean()
        for cap in (0, size // 4, size // 2, size * 3 // 4):
            clone = with_residency(one, Residency(cap=cap))
            for _ in range(3):
                images.append(run(clone))
                assert clone.loaded_size() <= cap
            clean()
    assert off(images[0], PATCHED) < 0.02
    assert off(images[0], PLAIN) > 0.05
    for image in images:
        assert torch.equal(image, images[0])


def case_a_lora_smaller_than_a_step_of_the_codes_is_not_lost() -> None:
    torch.manual_seed(3)
    delta = torch.randn(WIDTH, WIDTH) * 1e-4
    clone, _ = stored(BASE)
    without = run(clone)
    with_lora = clone.clone()
    with_lora.add_patches(dict.fromkeys(KEYS, ("diff", (delta,))), 1.0)
    exact = BASE.clone()
    exact.add_patches(dict.fromkeys(KEYS, ("diff", (delta,))), 1.0)
    change = run(with_lora) - without
    expected = run(exact) - PLAIN
    # In float16, which the core may choose for LoRAs, a weight of 0.05 has steps of 3e-5.
    half = getattr(mm, "lora_compute_dtype", lambda _: torch.float32)(DEVICE) == torch.float16
    assert off(change, expected) < (0.2 if half else 0.05), off(change, expected)
    clean()


def case_growing_and_shrinking_keep_the_image() -> None:
    clone = with_residency(lora(stored(BASE)[0]), Residency(cap=0))
    size = clone.model_size()
    first = run(clone)
    for cap in (size // 2, size // 2 + 1000, size * 3 // 4, size // 8, size, 0, size // 4):
        clone.set_attachments("lowtide", Residency(cap=cap))
        assert torch.equal(run(clone), first), cap
        assert clone.loaded_size() <= cap
    clean()


def case_another_lora_on_the_same_model_replaces_the_first() -> None:
    clone, _ = stored(BASE)
    plain = run(clone)
    other = lora(clone)
    changed = run(other)
    assert off(changed, plain) > 0.05
    assert torch.equal(run(clone), plain)
    assert torch.equal(run(other.clone()), changed)
    assert torch.equal(run(BASE), PLAIN)
    clean()


def case_a_set_weight_and_a_wrapper_reach_the_decoded_weight() -> None:
    value = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(4)) * 0.05
    for one in (BASE, stored(BASE)[0]):
        clone = one.clone()
        clone.add_patches(dict.fromkeys(KEYS, ("set", (value,))), 1.0)
        for key in KEYS:
            clone.add_weight_wrapper(key, lambda weight: weight * 0.5)
        image = run(clone)
        if one is BASE:
            expected = image
        clean()
    assert torch.equal(image, expected)


def case_hooked_loras_join_the_layers_own() -> None:
    import comfy.hooks

    delta = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5)) * 0.02
    images = []
    for one in (stored(lora(BASE))[0], with_residency(stored(lora(BASE))[0], Residency(cap=0))):
        hook = comfy.hooks.WeightHook()
        group = comfy.hooks.HookGroup()
        group.add(hook)
        one.add_hook_patches(hook, dict.fromkeys(KEYS, ("diff", (delta,))), 1.0)
        images.append(run(one))
        for _ in range(2):
            one.patch_hooks(group)
            images.append(forward(one))
            one.patch_hooks(None)
            images.append(forward(one))
        clean()
    exact = lora(BASE)
    exact.add_patches(dict.fromkeys(KEYS, ("diff", (delta,))), 1.0)
    expected = run(exact)
    assert off(images[1], expected) < 0.02, off(images[1], expected)
    assert off(images[0], images[1]) > 0.05
    for index, image in enumerate(images):
        assert torch.equal(image, images[0 if index % 5 in (0, 2, 4) else 1]), index
    clean()


def case_the_skip_list_and_quantised_weights_keep_their_type() -> None:
    one = patcher()
    net = one.model.diffusion_model
    ops = comfy.ops.disable_weight_init

    def linear(width: int = WIDTH, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        layer = ops.Linear(width, width, dtype=torch.float32)
        torch.nn.init.normal_(layer.weight, std=0.05)
        torch.nn.init.zeros_(layer.bias)
        return layer.requires_grad_(False).to(dtype)

    class Foreign(ops.Linear):
        def forward_comfy_cast_weights(self, x: torch.Tensor) -> torch.Tensor:
            return x

    beside = {"time_embed": linear(), "img_in": linear(), "final_layer": linear(), "out": linear()}
    for name, layer in beside.items():
        net.add_module(name, layer)
    net.input_blocks = torch.nn.ModuleList([linear(), linear()])
    scaled = linear()
    scaled.scale_weight = torch.nn.Parameter(torch.ones(()), requires_grad=False)
    infinite = linear()
    infinite.weight[3, 3] = torch.inf
    foreign = Foreign(WIDTH, WIDTH, dtype=torch.float32)
    left = [linear(64), linear(dtype=torch.float8_e4m3fn), scaled, infinite, foreign]
    net.blocks.extend(left)
    replaced = one.clone()
    replaced.add_object_patch("diffusion_model.blocks.0", linear())
    clone, entry = stored(replaced)
    load(clone)
    found = {name for name, part in one.model.named_modules() if isinstance(part, Float8Layer)}
    expected = {f"diffusion_model.blocks.{index}" for index in range(1, LAYERS)}
    assert found == expected | {"diffusion_model.input_blocks.1"}, found
    for text in ("5 first and last layers", "2 stored in a smaller", "1 too small", "1 not finite"):
        assert text in entry.detail, entry.detail
    assert "2 of a kind Lowtide does not know" in entry.detail, entry.detail
    unload()


def case_a_model_in_fp8_already_is_left_alone_and_the_reason_said() -> None:
    one = patcher()
    one.model.diffusion_model.blocks.to(torch.float8_e4m3fn)
    clone, entry = stored(one)
    assert clone is one
    assert isinstance(entry, Skipped)
    assert f"{LAYERS} stored in a smaller type already" in entry.reason, entry.reason


def case_a_dynamic_patcher_is_left_alone() -> None:
    asked = float8.is_dynamic
    float8.is_dynamic = lambda _patcher: True
    try:
        clone, entry = stored(BASE)
    finally:
        float8.is_dynamic = asked
    assert clone is BASE
    assert "DynamicVRAM" in entry.reason


def case_an_early_lora_in_the_loaded_model_is_not_encoded() -> None:
    load(lora(BASE))
    clone, _ = stored(BASE)
    expected = run(stored(patcher())[0])
    assert torch.equal(run(clone), expected)
    clean()


def case_storing_twice_changes_nothing() -> None:
    clone, _ = stored(BASE)
    again, entry = stored(clone)
    assert "already" in entry.reason
    assert torch.equal(run(again), run(clone))
    clean()


def case_the_type_of_codes_survives_a_cast_of_the_module() -> None:
    clone, _ = stored(BASE)
    image = run(clone)
    layer = BASE.model.diffusion_model.blocks[1]
    bias, scale, codes = layer.bias, layer.lowtide_scale.clone(), layer.weight.clone()
    layer.half()
    assert layer.bias.dtype == torch.float16
    assert torch.equal(layer.lowtide_scale, scale)
    assert torch.equal(layer.weight.view(torch.uint8), codes.view(torch.uint8))
    layer.bias.data = bias.data.float()
    assert off(forward(clone), image) < 1e-3
    unload()
    BASE.model.diffusion_model.blocks[1].bias.data = BEFORE[KEYS[1].replace("weight", "bias")]
    clean()


def case_streaming_counts_the_decoded_weight() -> None:
    clone, _ = stored(BASE)
    at_once = 1 + int(getattr(mm, "NUM_STREAMS", 0))
    plain = LAYER + 4 * LAYER + 4 * WIDTH + codec.decode_bytes(LAYER)
    assert streaming_bytes(clone) == plain * at_once
    assert streaming_bytes(lora(clone)) == (plain + 8 * LAYER) * at_once
    assert streaming_bytes(BASE) == (4 * LAYER + 4 * WIDTH) * at_once


def case_the_report_says_what_undoing_costs() -> None:
    _, entry = stored(BASE)
    assert f"{LAYERS} layers in float8_e4m3fn" in entry.detail
    assert "the originals stay in host RAM" in entry.detail
    entry.undo()

"""Matrices are stored in FP8 between forwards, computed in their own type, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from lowtide.memory.adapters import diffusers_casting as casting
from lowtide.memory.adapters.diffusers import CASTING_HOOK, hook_of
from lowtide.memory.adapters.synthetic import build, lora_state_dict

FP8 = torch.float8_e4m3fn


def net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Sequential(torch.nn.Linear(8, 4))
    )


def cast(module: torch.nn.Module) -> None:
    for layer in casting.castable_layers(module, (torch.nn.Linear,), ()):
        casting.cast_layer(layer, FP8, torch.float32)


def test_matrices_are_stored_small_and_biases_are_not() -> None:
    module = net()
    cast(module)
    types = {name: p.dtype for name, p in module.named_parameters()}
    assert {n for n, t in types.items() if t == FP8} == {"0.weight", "2.0.weight"}
    assert types["0.bias"] == types["1.weight"] == torch.float32


def test_a_forward_computes_in_the_full_type_and_stores_again() -> None:
    module, expected = net(), net()
    for layer in (expected[0], expected[2][0]):
        layer.weight.data = layer.weight.data.to(FP8).float()
    cast(module)
    x = torch.randn(3, 8)
    assert torch.equal(module(x), expected(x))
    assert module[0].weight.dtype == FP8


def test_removing_the_hooks_leaves_the_stored_weights_to_their_owner() -> None:
    module = net()
    signature = module[0].forward.__qualname__
    cast(module)
    assert casting.is_cast(module)
    casting.remove_casting(module)
    assert not casting.is_cast(module)
    assert module[0].weight.dtype == FP8
    assert module[0].forward.__qualname__ == signature
    casting.remove_casting(net())


def test_diffusers_own_casting_is_recognised() -> None:
    unet = build("tiny-sd15", "float32").unet
    assert not casting.is_cast(unet)
    unet.enable_layerwise_casting(storage_dtype=FP8, compute_dtype=torch.float32)
    assert casting.is_cast(unet)


def test_a_skipped_name_takes_what_is_below_it_along() -> None:
    unet = build("tiny-sd15", "float32").unet
    every = list(casting.castable_layers(unet, (torch.nn.Linear,), ()))
    few = list(casting.castable_layers(unet, (torch.nn.Linear,), ("^down_blocks$", "time_emb")))
    names = {id(module): name for name, module in unet.named_modules()}
    skipped = {names[id(layer)] for layer in every} - {names[id(layer)] for layer in few}
    assert skipped == {
        name
        for name in (names[id(layer)] for layer in every)
        if name.startswith("down_blocks.") or "time_emb" in name
    }
    assert any(name.startswith("down_blocks.") for name in skipped)


@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.Linear])
def test_only_the_kinds_asked_for_are_found(kind: type[torch.nn.Module]) -> None:
    unet = build("tiny-sd15", "float32").unet
    assert {type(layer) for layer in casting.castable_layers(unet, (kind,), ())} == {kind}


def test_the_authors_own_exceptions_are_kept() -> None:
    class Delicate(torch.nn.Module):
        _skip_layerwise_casting_patterns = ["norm"]
        _keep_in_fp32_modules = ["wo"]

    assert casting.own_skip_patterns(Delicate()) == ("norm", "wo")
    assert casting.own_skip_patterns(net()) == ()


def test_the_small_matrices_of_adapters_are_left_out() -> None:
    pipe = build("tiny-sd15", "float32")
    pipe.load_lora_weights(lora_state_dict(pipe), adapter_name="one")
    skip = casting.adapter_layer_names()
    names = {id(module): name for name, module in pipe.unet.named_modules()}
    linear = (torch.nn.Linear,)
    kept = {names[id(m)] for m in casting.castable_layers(pipe.unet, linear, skip)}
    every = {names[id(m)] for m in casting.castable_layers(pipe.unet, linear, ())}
    assert every - kept == {name for name in every if ".lora_" in name} != set()


def test_the_hook_has_diffusers_name() -> None:
    module = net()
    cast(module)
    assert hook_of(module[0], CASTING_HOOK) is not None
    assert hook_of(module[1], CASTING_HOOK) is None

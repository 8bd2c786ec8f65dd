from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from lowtide.memory.adapters import diffusers
from lowtide.memory.adapters.diffusers import attention_layers
from lowtide.memory.errors import ConfigError
from lowtide.memory.strategies import attention, placement
from lowtide.memory.strategies.attention import Attention, apply, has_fused_kernel
from lowtide.memory.strategies.base import Applied, Skipped
from lowtide.tests.memory.strategies.pipes import Plain, structure, tiny, undo


def kinds(module: torch.nn.Module) -> set[str]:
    return {type(layer.processor).__name__ for layer in attention_layers(module)}


def test_a_fused_kernel_is_found_by_asking_torch(accelerator: Any) -> None:
    assert has_fused_kernel(accelerator.device)
    assert has_fused_kernel(torch.device("cpu"), torch.float32)
    assert not has_fused_kernel(torch.device("mps"))


def test_auto_keeps_the_fused_kernel(accelerator: Any) -> None:
    pipe = tiny()
    before = structure(pipe)
    outcome = apply(Attention("auto", accelerator.device), pipe.unet, "unet")
    assert isinstance(outcome, Skipped) and "fused kernel is in use" in outcome.reason
    assert structure(pipe) == before


def test_auto_slices_where_there_is_no_fused_kernel() -> None:
    pipe = tiny()
    before = structure(pipe)
    outcome = apply(Attention("auto", torch.device("mps")), pipe.unet, "unet")
    assert isinstance(outcome, Applied) and outcome.detail == "sliced, auto heads at once"
    assert kinds(pipe.unet) == {"SlicedAttnProcessor"}
    undo([outcome])
    assert structure(pipe) == before


@pytest.mark.parametrize("kind", ["sub-quadratic", "split"])
def test_what_diffusers_lacks_is_sliced_and_said(accelerator: Any, kind: str) -> None:
    pipe = tiny()
    outcome = apply(Attention(kind, accelerator.device), pipe.unet, "unet")
    assert isinstance(outcome, Applied)
    assert outcome.detail == f"sliced, auto heads at once, as diffusers has no {kind}"
    assert kinds(pipe.unet) == {"SlicedAttnProcessor"}
    transformer = apply(Attention(kind, accelerator.device), tiny("tiny-flux").transformer, "t")
    assert transformer == Skipped(attention.NAME, "t", f"its class has no {kind} attention")


@pytest.mark.parametrize("size", ["auto", "max", 1, 2])
def test_slices_change_the_image_by_rounding_only(accelerator: Any, size: int | str) -> None:
    plain = Plain(accelerator, size=64)
    kernel = Attention("sliced", accelerator.device, size)
    outcomes = [apply(kernel, plain.pipe.unet, "unet")]
    expected = {"auto": 2, "max": 1}.get(size, size)
    layers = attention_layers(plain.pipe.unet)
    assert {layer.processor.slice_size for layer in layers} == {expected}
    outcomes += placement.apply(placement.Placement(accelerator.device), plain.pipe)
    assert torch.allclose(plain.measured().image, plain.run.image, atol=2e-5)
    undo(outcomes)
    plain.assert_restored()


def test_slices_hold_fewer_scores_than_plain_attention(accelerator: Any) -> None:
    unet = tiny().unet.to(accelerator.device)
    latents = torch.randn(1, 4, 32, 32).half().to(accelerator.device)
    prompt = torch.randn(1, 77, 256).half().to(accelerator.device)
    scores = 4 * 1024 * 1024 * 2
    peaks: dict[int, int] = {}
    unet.set_attn_processor(AttnProcessor())
    for size in (0, 2, 1):
        kernel = Attention("sliced", accelerator.device, size)
        outcomes = [apply(kernel, unet, "unet")] if size else []
        held = accelerator.allocated
        accelerator.reset_peaks()
        with torch.no_grad():
            unet(latents, 1, prompt)
        peaks[size] = accelerator.peak_allocated - held
        undo(outcomes)
    assert peaks[0] > 2 * scores
    assert peaks[2] < peaks[0] - 0.8 * scores
    assert peaks[1] < peaks[2] - 0.4 * scores
    assert kinds(unet) == {"AttnProcessor"}


def test_pytorch_replaces_what_was_sliced_and_the_undo_slices_again(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    unet = plain.pipe.unet
    first = apply(Attention("pytorch", accelerator.device), unet, "unet")
    assert isinstance(first, Skipped) and "in use already" in first.reason
    unet.set_attention_slice(1)
    sliced = [layer.processor for layer in attention_layers(unet)]
    outcome = apply(Attention("pytorch", accelerator.device), unet, "unet")
    assert isinstance(outcome, Applied)
    assert outcome.detail == f"torch's fused kernel in {len(sliced)} layers"
    assert kinds(unet) == {"AttnProcessor2_0"}
    placed = placement.apply(placement.Placement(accelerator.device), plain.pipe)
    assert torch.equal(plain.measured().image, plain.run.image)
    undo([outcome, *placed])
    assert [layer.processor for layer in attention_layers(unet)] == sliced


def test_a_processor_of_the_users_own_is_left_alone_by_pytorch(accelerator: Any) -> None:
    unet = tiny().unet
    own = AttnProcessor()
    attention_layers(unet)[0].set_processor(own)
    assert isinstance(apply(Attention("pytorch", accelerator.device), unet, "unet"), Skipped)
    assert attention_layers(unet)[0].processor is own


def test_too_many_heads_at_once_are_refused_with_the_remedy(accelerator: Any) -> None:
    pipe = tiny()
    before = structure(pipe)
    with pytest.raises(ConfigError, match=r"attention_slice_size=99 does not suit unet.*fewer"):
        apply(Attention("sliced", accelerator.device, 99), pipe.unet, "unet")
    assert structure(pipe) == before


def test_a_class_without_slices_and_one_without_attention_are_skipped(accelerator: Any) -> None:
    sliced = Attention("sliced", accelerator.device)
    transformer = apply(sliced, tiny("tiny-flux").transformer, "transformer")
    linear = apply(sliced, torch.nn.Linear(1, 1), "unet")
    assert transformer == Skipped(
        attention.NAME, "transformer", "its class has no sliced attention"
    )
    assert linear == Skipped(attention.NAME, "unet", "it has no exchangeable attention")


def test_xformers_that_is_missing_is_named_with_the_remedy(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusers, "xformers_available", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install xformers.*attention='auto'"):
        apply(Attention("xformers", accelerator.device), tiny().unet, "unet")


@pytest.mark.parametrize("fails", [False, True])
def test_xformers_is_enabled_through_diffusers_and_undone(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(diffusers, "xformers_available", lambda: True)
    pipe = tiny()
    before = structure(pipe)

    def enable() -> None:
        for layer in attention_layers(pipe.unet):
            layer.set_processor(AttnProcessor2_0())
        if fails:
            raise ValueError("no kernel for this card")

    with monkeypatch.context() as patched:
        name = "enable_xformers_memory_efficient_attention"
        patched.setattr(type(pipe.unet), name, lambda _: enable())
        if fails:
            with pytest.raises(ValueError, match="no kernel"):
                apply(Attention("xformers", accelerator.device), pipe.unet, "unet")
        else:
            outcome = apply(Attention("xformers", accelerator.device), pipe.unet, "unet")
            assert structure(pipe) != before
            undo([outcome])
    assert structure(pipe) == before


def test_processors_of_a_users_own_stay(accelerator: Any) -> None:
    unet = tiny("tiny-sd15").unet

    class Own(AttnProcessor2_0):
        pass

    own = Own()
    unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(own)
    outcome = apply(Attention("sliced", accelerator.device), unet, "unet")
    assert isinstance(outcome, Skipped) and "Own" in outcome.reason
    assert unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor is own

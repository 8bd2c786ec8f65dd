"""Components in turns: what is there when, what is moved, and that nothing of it is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.adapters.diffusers import modules_of
from lowtide.memory.evict import evict
from lowtide.memory.strategies.base import Applied
from lowtide.memory.strategies.turns import Share, Turns, apply
from lowtide.memory.tensors import device_bytes
from lowtide.tests.memory.strategies.pipes import Plain, image, undo

HALF = frozenset({"conv_in", "mid_block.attentions.0.proj_in", "time_embedding.linear_1"})
STREAMED: frozenset[str] = frozenset()


@pytest.fixture(params=[("tiny-sd15", "float32"), ("tiny-sdxl", "float16")], ids=str)
def plain(accelerator: Any, request: pytest.FixtureRequest) -> Plain:
    return Plain(accelerator, *request.param)


def size_of(part: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers()))


def twice(pipe: Any) -> int:
    """Bytes that come besides the weights as they are: a second encoder's turns, a VAE upcast."""
    second = getattr(pipe, "text_encoder_2", None)
    return 0 if second is None else size_of(second) + size_of(pipe.vae) + (1 << 20)


def present(pipe: Any, device: torch.device) -> set[str]:
    return {name for name, part in modules_of(pipe).items() if device_bytes(part, device)}


def test_each_comes_once_and_leaves_for_the_next(accelerator: Any, plain: Plain) -> None:
    seen: list[set[str]] = []
    look = plain.pipe.unet.conv_in.register_forward_pre_hook(
        lambda *_: seen.append(present(plain.pipe, accelerator.device))
    )
    outcomes = apply(Turns(accelerator.device, {}), plain.pipe)
    assert all(isinstance(one, Applied) for one in outcomes)
    assert present(plain.pipe, accelerator.device) == set()
    run = plain.measured()
    look.remove()
    assert seen and all(found == {"unet"} for found in seen)
    assert torch.equal(run.image, plain.run.image)
    assert run.peak < plain.run.peak
    assert run.d2h == plain.run.d2h, "nothing is copied back"
    assert present(plain.pipe, accelerator.device) == set(), "the run is over"
    undo(outcomes)
    plain.assert_restored()


def test_what_is_not_resident_is_streamed(accelerator: Any, plain: Plain) -> None:
    shares = {"unet": Share(HALF), "text_encoder": Share(STREAMED), "vae": Share(STREAMED)}
    outcomes = apply(Turns(accelerator.device, shares), plain.pipe)
    plain.measured()
    run = plain.measured()
    assert torch.equal(run.image, plain.run.image)
    unet = plain.pipe.unet
    held = sum(size_of(unet.get_submodule(path)) for path in HALF)
    assert 0 < held < size_of(unet)
    whole = apply_and_measure(accelerator, plain, outcomes, {"unet": Share(STREAMED)})
    steps = 2
    assert whole - run.h2d == pytest.approx((steps - 1) * held, abs=held / 2)
    plain.assert_restored()


def apply_and_measure(accelerator: Any, plain: Plain, before: Any, shares: dict[str, Share]) -> int:
    undo(before)
    both = {"text_encoder": Share(STREAMED), "vae": Share(STREAMED), **shares}
    outcomes = apply(Turns(accelerator.device, both), plain.pipe)
    plain.measured()
    moved = plain.measured().h2d
    undo(outcomes)
    return moved


def test_who_stays_is_there_from_the_beginning_and_moved_no_more(
    accelerator: Any, plain: Plain
) -> None:
    shares = {name: Share(stays=True) for name in ("unet", "text_encoder")}
    outcomes = apply(Turns(accelerator.device, shares), plain.pipe)
    assert present(plain.pipe, accelerator.device) == set(shares)
    first, second = plain.measured(), plain.measured()
    assert torch.equal(second.image, plain.run.image)
    assert first.h2d == second.h2d < plain.weights - size_of(plain.pipe.unet) + twice(plain.pipe)
    assert present(plain.pipe, accelerator.device) == set(shares)
    undo(outcomes)
    plain.assert_restored()


def test_encoders_that_wait_beside_each_other_come_once(accelerator: Any) -> None:
    plain = Plain(accelerator, "tiny-sdxl", "float16")
    names = frozenset({"text_encoder", "text_encoder_2"})
    moved = []
    for beside in (frozenset(), names):
        outcomes = apply(
            Turns(accelerator.device, {name: Share(beside=beside) for name in names}), plain.pipe
        )
        plain.measured()
        moved.append(plain.measured().h2d)
        undo(outcomes)
    encoders = sum(size_of(getattr(plain.pipe, name)) for name in names)
    assert moved[0] - moved[1] == pytest.approx(encoders, rel=0.01)
    plain.assert_restored()


def test_an_encode_has_what_a_decode_does_without(accelerator: Any) -> None:
    plain = Plain(accelerator)
    vae = plain.pipe.vae
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    expected = vae.encode(pixels).latent_dist.mean
    shares = {"vae": Share(frozenset({"decoder", "post_quant_conv"}))}
    outcomes = apply(Turns(accelerator.device, shares), plain.pipe)
    run = plain.measured()
    assert torch.equal(run.image, plain.run.image)
    assert run.h2d < plain.weights - size_of(vae.encoder) + (256 << 10)
    found = vae.encode(pixels.to(accelerator.device)).latent_dist.mean.cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    undo(outcomes)
    plain.assert_restored()


def test_evicting_copies_nothing_and_the_next_run_works(accelerator: Any, plain: Plain) -> None:
    outcomes = apply(Turns(accelerator.device, {"unet": Share(stays=True)}), plain.pipe)
    plain.measured()
    held = device_bytes(plain.pipe.unet, accelerator.device)
    accelerator.reset_counters()
    assert held and evict(plain.pipe.unet, accelerator.device) == held
    assert accelerator.counters()["d2h"] == 0
    assert device_bytes(plain.pipe.unet, accelerator.device) == 0
    assert torch.equal(plain.measured().image, plain.run.image)
    undo(outcomes)
    plain.assert_restored()


def test_a_run_that_breaks_off_leaves_a_pipeline_that_works(accelerator: Any, plain: Plain) -> None:
    shares = {"unet": Share(HALF)}
    outcomes = apply(Turns(accelerator.device, shares), plain.pipe)
    for allocation in (5, 60, 200):
        accelerator.fail_allocation(allocation)
        with pytest.raises(torch.OutOfMemoryError):
            image(plain.pipe)
        assert torch.equal(plain.measured().image, plain.run.image)
    undo(outcomes)
    plain.assert_restored()


def test_a_failure_while_applying_undoes_what_was_done(accelerator: Any, plain: Plain) -> None:
    accelerator.fail_allocation(3)
    with pytest.raises(torch.OutOfMemoryError):
        apply(Turns(accelerator.device, {"unet": Share(stays=True)}), plain.pipe)
    plain.assert_restored()

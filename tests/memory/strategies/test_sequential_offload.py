from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.adapters.diffusers import modules_of
from lowtide.memory.evict import evict
from lowtide.memory.strategies.base import Applied
from lowtide.memory.strategies.sequential_offload import SequentialOffload, apply
from lowtide.memory.tensors import device_bytes
from lowtide.tests.memory.strategies.pipes import Plain, image, undo


def left(plain: Plain) -> tuple[int, int]:
    """Nothing but the buffers accelerate leaves on the device between runs."""
    for part in modules_of(plain.pipe).values():
        evict(part)
    return plain.left()


@pytest.mark.parametrize("name", ["tiny-sd15", "tiny-sdxl", "tiny-flux"])
def test_one_leaf_at_a_time_gives_the_same_image(accelerator: Any, name: str) -> None:
    plain = Plain(accelerator, name)
    outcomes = apply(SequentialOffload(accelerator.device), plain.pipe)
    assert [one.component for one in outcomes] == list(modules_of(plain.pipe))
    assert all(isinstance(one, Applied) and "leaf by leaf" in one.detail for one in outcomes)
    weights = [p for part in modules_of(plain.pipe).values() for p in part.parameters()]
    assert all(weight.is_meta for weight in weights)
    run = plain.measured()
    assert torch.equal(run.image, plain.run.image)
    assert run.peak < plain.run.peak - 0.95 * plain.weights
    assert run.h2d > 1.3 * plain.weights, "the denoiser's weights go up once a step"
    assert run.d2h < 0.01 * plain.weights, "weights are dropped, not copied back"
    assert sum(map(device_bytes, modules_of(plain.pipe).values())) < 8192
    assert left(plain) == (0, 0)
    assert torch.equal(plain.measured().image, plain.run.image)
    undo(outcomes)
    plain.assert_restored()


def test_only_the_named_components_are_offloaded(accelerator: Any) -> None:
    plain = Plain(accelerator)
    pipe = plain.pipe
    outcomes = apply(SequentialOffload(accelerator.device, ("unet",)), pipe)
    assert [one.component for one in outcomes] == ["unet"]
    assert all(weight.is_meta for weight in pipe.unet.parameters())
    assert not any(weight.is_meta for weight in pipe.vae.parameters())
    pipe.vae.to(accelerator.device)
    pipe.text_encoder.to(accelerator.device)
    run = plain.measured()
    assert torch.equal(run.image, plain.run.image)
    assert run.peak < plain.run.peak
    pipe.vae.to("cpu")
    pipe.text_encoder.to("cpu")
    undo(outcomes)
    plain.assert_restored()


def test_a_component_on_the_device_leaves_it(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    plain.pipe.unet.to(accelerator.device)
    outcomes = apply(SequentialOffload(accelerator.device, ("unet",)), plain.pipe)
    assert device_bytes(plain.pipe.unet) < 8192
    undo(outcomes)
    assert {p.device for p in plain.pipe.unet.parameters()} == {accelerator.device}
    plain.pipe.unet.to("cpu")
    plain.assert_restored()


def test_one_undo_covers_the_pipeline(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    first, *others = apply(SequentialOffload(accelerator.device), plain.pipe)
    undo(others)
    assert all(p.is_meta for p in plain.pipe.unet.parameters())
    undo([first])
    plain.assert_restored()


def test_an_interrupted_run_leaves_nothing_after_the_undo(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    outcomes = apply(SequentialOffload(accelerator.device), plain.pipe)
    leaf = plain.pipe.unet.mid_block.resnets[0].conv1
    forward = leaf.forward

    def stop(*args: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    inner, leaf._old_forward = leaf._old_forward, stop
    with pytest.raises(KeyboardInterrupt):
        image(plain.pipe, size=64)
    leaf._old_forward = inner
    assert leaf.forward is forward
    assert leaf.weight.device == accelerator.device
    undo(outcomes)
    plain.assert_restored()
    outcomes = apply(SequentialOffload(accelerator.device), plain.pipe)
    assert torch.equal(plain.measured().image, plain.run.image)
    undo(outcomes)
    plain.assert_restored()


def test_what_the_pipeline_excludes_stays_on_the_device(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    plain.pipe._exclude_from_cpu_offload = ["text_encoder"]
    outcomes = apply(SequentialOffload(accelerator.device), plain.pipe)
    details = {one.component: one.detail for one in outcomes if isinstance(one, Applied)}
    assert "its pipeline excludes it" in details["text_encoder"]
    assert {p.device for p in plain.pipe.text_encoder.parameters()} == {accelerator.device}
    assert torch.equal(plain.measured().image, plain.run.image)
    undo(outcomes)
    del plain.pipe._exclude_from_cpu_offload
    plain.assert_restored()


@pytest.mark.parametrize("only", [None, ("unet", "no such component")])
def test_a_failure_half_way_undoes_itself(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch, only: tuple[str, ...] | None
) -> None:
    plain = Plain(accelerator, size=64)
    enable = plain.pipe.enable_sequential_cpu_offload

    def fails(**named: Any) -> None:
        enable(**named)
        raise KeyError("no such component")

    with monkeypatch.context() as patched, pytest.raises(KeyError, match="no such component"):
        patched.setattr(plain.pipe, "enable_sequential_cpu_offload", fails)
        apply(SequentialOffload(accelerator.device, only), plain.pipe)
    vars(plain.pipe).pop("enable_sequential_cpu_offload", None)
    plain.assert_restored()

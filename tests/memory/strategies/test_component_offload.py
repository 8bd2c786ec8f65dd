from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.adapters.diffusers import modules_of
from lowtide.memory.evict import evict
from lowtide.memory.strategies.base import Applied, Skipped
from lowtide.memory.strategies.component_offload import ComponentOffload, apply
from lowtide.memory.tensors import device_bytes
from lowtide.tests.memory.strategies.pipes import Plain, image, undo


@pytest.mark.parametrize("name", ["tiny-sd15", "tiny-sdxl", "tiny-flux"])
def test_one_component_at_a_time_gives_the_same_image(accelerator: Any, name: str) -> None:
    plain = Plain(accelerator, name)
    largest = max(device_bytes_of(part) for part in modules_of(plain.pipe).values())
    outcomes = apply(ComponentOffload(accelerator.device), plain.pipe)
    assert [one.component for one in outcomes] == list(modules_of(plain.pipe))
    assert all(isinstance(one, Applied) and "for its turn" in one.detail for one in outcomes)
    run = plain.measured()
    assert torch.equal(run.image, plain.run.image)
    assert largest < run.peak < plain.run.peak - (plain.weights - largest) + (2 << 20)
    assert plain.weights * 0.99 < run.h2d < plain.weights * 1.1
    assert plain.left() == (0, 0)
    undo(outcomes)
    plain.assert_restored()


def device_bytes_of(part: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers()))


def test_the_same_pipeline_runs_again_after_the_undo(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    for _ in range(2):
        outcomes = apply(ComponentOffload(accelerator.device), plain.pipe)
        assert torch.equal(plain.measured().image, plain.run.image)
        undo(outcomes)
        plain.assert_restored()


def test_one_undo_covers_the_pipeline(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    first, *others = apply(ComponentOffload(accelerator.device), plain.pipe)
    undo(others)
    assert all(hasattr(part, "_hf_hook") for part in modules_of(plain.pipe).values())
    undo([first])
    plain.assert_restored()


def test_an_interrupted_run_leaves_nothing_after_the_undo(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    outcomes = apply(ComponentOffload(accelerator.device), plain.pipe)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = plain.pipe.unet.mid_block.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        image(plain.pipe, size=64)
    handle.remove()
    assert device_bytes(plain.pipe.unet) > 0
    undo(outcomes)
    plain.assert_restored()


def test_what_the_pipeline_excludes_stays_on_the_device(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    plain.pipe._exclude_from_cpu_offload = ["text_encoder"]
    try:
        plain.pipe.model_cpu_offload_seq = "unet->vae"
        outcomes = apply(ComponentOffload(accelerator.device), plain.pipe)
        details = {one.component: one.detail for one in outcomes if isinstance(one, Applied)}
        assert "its pipeline excludes it" in details["text_encoder"]
        assert f"on {accelerator.device} for its turn" == details["unet"]
        assert torch.equal(plain.measured().image, plain.run.image)
        assert device_bytes(plain.pipe.text_encoder) > 0
        assert device_bytes(plain.pipe.unet) == 0
        undo(outcomes)
    finally:
        del plain.pipe.model_cpu_offload_seq, plain.pipe._exclude_from_cpu_offload
    plain.assert_restored()


def test_a_pipeline_without_an_order_is_skipped_with_the_remedy(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    plain.pipe.model_cpu_offload_seq = None
    outcomes = apply(ComponentOffload(accelerator.device), plain.pipe)
    del plain.pipe.model_cpu_offload_seq
    assert [one.component for one in outcomes] == list(modules_of(plain.pipe))
    assert all(isinstance(one, Skipped) and "offload='group'" in one.reason for one in outcomes)
    plain.assert_restored()


def test_a_failure_half_way_undoes_itself(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Plain(accelerator, size=64)
    enable = plain.pipe.enable_model_cpu_offload

    def fails(**named: Any) -> None:
        enable(**named)
        raise RuntimeError("half way")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="half way"):
        patched.setattr(plain.pipe, "enable_model_cpu_offload", fails)
        apply(ComponentOffload(accelerator.device), plain.pipe)
    vars(plain.pipe).pop("enable_model_cpu_offload", None)
    assert evict(plain.pipe.unet) == 0
    plain.assert_restored()

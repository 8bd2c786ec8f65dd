from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.adapters.diffusers import modules_of
from lowtide.memory.strategies.base import Applied
from lowtide.memory.strategies.placement import Placement, apply, keep_pipeline_state
from lowtide.memory.tensors import device_bytes
from lowtide.tests.memory.strategies.pipes import Plain, undo


def test_all_weights_go_to_the_device_and_come_back_to_the_bit(accelerator: Any) -> None:
    plain = Plain(accelerator)
    outcomes = apply(Placement(accelerator.device), plain.pipe)
    parts = modules_of(plain.pipe)
    assert [one.component for one in outcomes] == list(parts)
    assert sum(device_bytes(part) for part in parts.values()) == plain.weights
    assert plain.weights <= accelerator.allocated < 1.05 * plain.weights
    again = plain.measured()
    assert torch.equal(again.image, plain.run.image)
    assert again.peak == plain.run.peak > plain.weights
    assert again.h2d < 0.01 * plain.weights
    undo(outcomes)
    plain.assert_restored()


def test_only_the_named_components_go(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    outcomes = apply(Placement(accelerator.device, ("unet",)), plain.pipe)
    assert [one.component for one in outcomes] == ["unet"]
    devices = {n: {p.device for p in m.parameters()} for n, m in modules_of(plain.pipe).items()}
    here = torch.device("cpu")
    assert devices == {"vae": {here}, "text_encoder": {here}, "unet": {accelerator.device}}
    undo(outcomes)
    plain.assert_restored()


def test_a_placement_that_does_not_fit_leaves_everything_where_it_was(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    accelerator(capacity="30M")
    with pytest.raises(torch.OutOfMemoryError):
        apply(Placement(accelerator.device), plain.pipe)
    plain.assert_restored()


def test_each_component_has_its_own_undo(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    vae, text_encoder, unet = apply(Placement(accelerator.device), plain.pipe)
    assert isinstance(unet, Applied)
    unet.undo()
    assert device_bytes(plain.pipe.unet) == 0
    assert device_bytes(plain.pipe.vae) and device_bytes(plain.pipe.text_encoder)
    undo([vae, text_encoder])
    plain.assert_restored()


def test_the_pipelines_state_survives_hooks_and_a_former_device(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    accelerator(devices=2)
    plain.pipe._offload_gpu_id = 1
    restore = keep_pipeline_state(plain.pipe, accelerator.device)
    plain.pipe.enable_model_cpu_offload(device=accelerator.device)
    assert plain.pipe.unet._hf_hook.execution_device == accelerator.device
    assert plain.pipe._all_hooks
    restore()
    assert vars(plain.pipe).pop("_offload_gpu_id") == 1
    plain.assert_restored()


def test_hooks_are_removed_before_their_traces(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    restore = keep_pipeline_state(plain.pipe, accelerator.device)
    plain.pipe.enable_sequential_cpu_offload(device=accelerator.device)
    assert plain.pipe.unet.conv_in.weight.is_meta
    restore()
    plain.assert_restored()

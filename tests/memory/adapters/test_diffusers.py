"""What is asked of diffusers' pipelines: their parts, the offload in force, its way back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lowtide.memory.adapters import diffusers as adapter
from lowtide.memory.adapters.synthetic import build
from lowtide.memory.errors import TargetError
from lowtide.tests.memory.tiny import small_run


@pytest.fixture
def pipe() -> Any:
    return build("tiny-sd15", "float32")


def enable(pipe: Any, kind: str, device: torch.device) -> None:
    if kind == "component":
        pipe.enable_model_cpu_offload(device=device)
    elif kind == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.enable_group_offload(onload_device=device, offload_type=kind, num_blocks_per_group=1)


def test_parts_with_weights_come_once_each(pipe: Any) -> None:
    assert set(adapter.modules_of(pipe)) == {"text_encoder", "unet", "vae"}
    pipe.text_encoder = pipe.vae
    assert len(adapter.modules_of(pipe)) == 2


def test_a_class_declares_its_components_loaded_or_not(pipe: Any) -> None:
    assert adapter.declares(pipe, "vae") and adapter.declares(pipe, "image_encoder")
    assert not adapter.declares(pipe, "transformer")


def test_only_pipelines_that_can_be_moved_are_taken(pipe: Any) -> None:
    assert adapter.require_pipeline(pipe) is pipe
    with pytest.raises(TargetError, match=r"^Linear is no diffusers pipeline"):
        adapter.require_pipeline(torch.nn.Linear(1, 1))
    pipe.hf_device_map = {"unet": 0, "vae": 1}
    with pytest.raises(TargetError, match="spread by a device map"):
        adapter.require_pipeline(pipe)


@pytest.mark.parametrize("kind", ["component", "sequential", "leaf_level", "block_level"])
def test_an_offload_is_found_removed_and_enabled_again(
    accelerator: Any, pipe: Any, kind: str
) -> None:
    assert adapter.existing_offload(pipe) is None
    enable(pipe, kind, accelerator.device)
    expected = small_run(pipe)
    found = adapter.existing_offload(pipe)
    assert found is not None
    assert found.kind == ("group" if "level" in kind else kind)
    assert found.device == accelerator.device
    adapter.remove_offload(pipe)
    assert adapter.existing_offload(pipe) is None
    pipe.to("cpu")
    adapter.restore_offload(pipe, found)
    again = adapter.existing_offload(pipe)
    assert again is not None and again.kind == found.kind
    if "level" in kind:
        assert {c.offload_type.value for c in again.configs.values()} == {kind}
        assert again.configs.keys() == found.configs.keys()
    assert torch.equal(small_run(pipe), expected)
    adapter.remove_offload(pipe)


def test_a_plain_pipeline_loses_nothing_by_a_removal(pipe: Any) -> None:
    before = {name: sorted(vars(m)) for name, m in pipe.unet.named_modules()}
    adapter.remove_offload(pipe)
    assert {name: sorted(vars(m)) for name, m in pipe.unet.named_modules()} == before


def test_leaves_of_one_part_come_alone(accelerator: Any, pipe: Any) -> None:
    base = accelerator.allocated
    adapter.offload_leaves(pipe.unet, accelerator.device)
    assert {p.device.type for p in pipe.unet.parameters()} == {"meta"}
    assert {p.device.type for p in pipe.vae.parameters()} == {"cpu"}
    assert accelerator.allocated - base < 4096


def test_feed_forwards_and_attention_are_found(pipe: Any) -> None:
    names = [name for name, _ in adapter.feed_forwards(pipe.unet)]
    assert names and all(name.endswith(".ff") for name in names)
    layers = adapter.attention_layers(pipe.unet)
    assert len(layers) == 2 * len(names)
    assert adapter.feed_forwards(torch.nn.Linear(1, 1)) == []
    assert adapter.attention_layers(torch.nn.Linear(1, 1)) == []


def test_a_class_may_refuse_group_offload() -> None:
    assert adapter.supports_group_offload(torch.nn.Linear(1, 1))
    refusing: Any = SimpleNamespace(_supports_group_offloading=False)
    assert not adapter.supports_group_offload(refusing)


def test_tensors_are_changed_wherever_they_are_nested() -> None:
    data = {"a": [torch.zeros(1), (torch.zeros(1), "text")], "b": 3}
    changed = adapter.convert(data, lambda tensor: tensor + 1)
    assert changed["a"][0].item() == changed["a"][1][0].item() == 1
    assert (changed["a"][1][1], changed["b"]) == ("text", 3)


def test_hooks_are_found_on_the_module_that_has_them(accelerator: Any, pipe: Any) -> None:
    assert adapter.hook_of(pipe.unet.conv_in, adapter.GROUP_HOOKS[0]) is None
    enable(pipe, "leaf_level", accelerator.device)
    assert adapter.hook_of(pipe.unet.conv_in, adapter.GROUP_HOOKS[0]) is not None
    adapter.remove_group_offload(pipe.unet)
    assert adapter.hook_of(pipe.unet.conv_in, adapter.GROUP_HOOKS[0]) is None
    assert adapter.hook_of(pipe.vae.decoder.conv_in, adapter.GROUP_HOOKS[0]) is not None
    adapter.remove_offload(pipe)

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.strategies.snapshot import Snapshot, tensors_of


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.register_buffer("scale", torch.full((1,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.scale


def state(block: torch.nn.Module) -> dict[str, Any]:
    named = (*block.named_parameters(), *block.named_buffers())
    return {name: (id(t), t.device, t.dtype, t.tolist(), t.is_pinned()) for name, t in named}


def attributes(block: torch.nn.Module) -> dict[str, list[str]]:
    return {name: sorted(vars(part)) for name, part in block.named_modules()}


def test_devices_types_and_identities_come_back(accelerator: Any) -> None:
    block = Block()
    before = state(block)
    snapshot = Snapshot(block)
    block.to(accelerator.device)
    block.inner.weight.data = block.inner.weight.data.double()
    block.inner.bias = torch.nn.Parameter(torch.zeros(4, device=accelerator.device))
    block.scale = torch.zeros(1, device=accelerator.device)
    snapshot.restore()
    block.inner.bias.data = block.inner.bias.data.cpu()
    assert state(block) == before


def test_a_weight_that_was_on_the_device_goes_back_there(accelerator: Any) -> None:
    block = Block()
    block.inner.to(accelerator.device)
    before = state(block)
    snapshot = Snapshot(block)
    block.to("cpu")
    snapshot.restore()
    assert state(block) == before
    assert block.inner.weight.device == accelerator.device


def test_original_values_are_kept_on_demand_only(accelerator: Any) -> None:
    block = Block().to(accelerator.device)
    before = state(block)
    bare, keeping = Snapshot(block), Snapshot(block, keep_data=True)
    assert (bare.host_bytes, keeping.host_bytes) == (0, (16 + 4 + 1) * 4)
    block.inner.weight.data = block.inner.weight.data.to(torch.float8_e4m3fn)
    block.inner.bias.data = block.inner.bias.data + 1
    bare.restore()
    assert block.inner.weight.dtype == torch.float32
    assert state(block) != before
    keeping.restore()
    assert state(block) == before


@pytest.mark.parametrize("smaller", [torch.float8_e4m3fn, torch.float16])
def test_weights_that_got_their_own_type_back_meanwhile_keep_it(smaller: torch.dtype) -> None:
    block = Block()
    block.scale.zero_()
    before = state(block)
    originals = {tensor: tensor.data for tensor in tensors_of(block)}
    for tensor in originals:
        tensor.data = tensor.data.to(smaller)
    late = Snapshot(block)
    for tensor, data in originals.items():
        tensor.data = data
    late.restore()
    if smaller == torch.float16:
        block.scale.data = block.scale.data.float()  # zero is as exact in either type
    assert state(block) == before


def test_page_locked_copies_are_given_back_and_the_users_own_are_kept(accelerator: Any) -> None:
    block = Block()
    block.inner.bias.data = block.inner.bias.data.pin_memory()
    before = state(block)
    held = accelerator.counters()["pinned"]
    snapshot = Snapshot(block)
    block.inner.weight.data = block.inner.weight.data.pin_memory()
    assert accelerator.counters()["pinned"] > held
    snapshot.restore()
    assert accelerator.counters()["pinned"] == held
    assert state(block) == before
    assert block.inner.bias.is_pinned()


@pytest.mark.parametrize("name", ["forward", "_old_forward", "_diffusers_hook", "to", "cuda"])
def test_traces_of_hooks_are_wiped_off(name: str) -> None:
    block = Block()
    before = attributes(block)
    snapshot = Snapshot(block)
    vars(block.inner)[name] = Registry() if name == "_diffusers_hook" else lambda *_: None
    assert attributes(block) != before
    snapshot.restore()
    assert attributes(block) == before


class Registry:
    def __init__(self, **hooks: Any) -> None:
        self.hooks = hooks


@pytest.mark.parametrize("theirs", [{"_diffusers_hook": Registry(cache=1)}, {"_hf_hook": object()}])
def test_hooks_of_others_stay_with_the_forward_they_replaced(theirs: dict[str, Any]) -> None:
    block = Block()
    snapshot = Snapshot(block)
    forward = lambda *_: None  # noqa: E731
    vars(block.inner).update(theirs, forward=forward)
    snapshot.restore()
    assert {name: vars(block.inner)[name] for name in theirs} == theirs
    assert block.inner.forward is forward


def test_a_forward_of_before_comes_back() -> None:
    block = Block()
    mine = block.forward
    vars(block)["forward"] = mine
    snapshot = Snapshot(block)
    vars(block)["forward"] = lambda *_: None
    snapshot.restore()
    assert vars(block)["forward"] is mine


def test_a_layer_that_joined_since_follows_the_root_and_keeps_its_weights(
    accelerator: Any,
) -> None:
    block = Block()
    snapshot = Snapshot(block)
    block.to(accelerator.device)
    block.adapter = torch.nn.Linear(4, 2, device=accelerator.device)
    vars(block.adapter)["_diffusers_hook"] = Registry()
    adapter = block.adapter.weight
    values = adapter.detach().cpu().clone()
    snapshot.restore()
    assert block.adapter.weight is adapter
    assert torch.equal(adapter.data, values)
    assert "_diffusers_hook" not in vars(block.adapter)
    assert {t.device.type for t in tensors_of(block)} == {"cpu"}


def test_a_parameter_taken_away_since_does_not_come_back() -> None:
    block = Block()
    snapshot = Snapshot(block)
    del block.inner.bias
    snapshot.restore()
    assert "bias" not in block.inner._parameters


def test_a_tensor_in_two_places_is_counted_once() -> None:
    block = Block()
    block.tied = torch.nn.Linear(4, 4, bias=False)
    block.tied.weight = block.inner.weight
    assert [id(t) for t in tensors_of(block)].count(id(block.inner.weight)) == 1
    assert len(list(tensors_of(block))) == 3
    assert Snapshot(block, keep_data=True).host_bytes == (16 + 4 + 1) * 4

"""Copies of modules that are in use: what is no weight, and what changes while it is copied."""

from __future__ import annotations

import pytest
import torch
from lowtide.memory.tracing import fake_copy, fake_mode, record
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor


class Busy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.table = torch.arange(4.0)
        self.large = torch.zeros(1 << 19)
        self.functions = [lambda weight: weight]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[torch.arange(2), [0, 1]]


def test_a_large_tensor_that_is_no_weight_becomes_a_fake_and_a_table_keeps_its_values():
    twin = fake_copy(Busy(), fake_mode())
    assert isinstance(twin.large, FakeTensor) and twin.large.shape == (1 << 19,)
    assert torch.equal(twin.table, torch.arange(4.0))


def test_lists_are_emptied_in_the_copy_alone():
    module = Busy()
    assert fake_copy(module, fake_mode(), emptied=("functions",)).functions == []
    assert len(module.functions) == 1


def test_a_weight_exchanged_while_it_is_copied_is_not_copied(monkeypatch: pytest.MonkeyPatch):
    module = Busy()
    weights = module.named_parameters

    def then_moved():
        found = list(weights())
        module.layer.weight = nn.Parameter(torch.ones(512, 1024))
        return found

    monkeypatch.setattr(module, "named_parameters", then_moved)
    twin = fake_copy(module, fake_mode())
    assert isinstance(twin.layer.weight.data, FakeTensor)
    assert twin.layer.weight.shape == (512, 1024)


@pytest.mark.parametrize("inference", [False, True])
def test_known_values_go_to_no_device(inference: bool):
    module, mode = Busy(), fake_mode()
    twin = fake_copy(module, mode)
    with mode:
        x = torch.empty(2, 64, device="cuda:0")
        known = torch.tensor([1.0, 2.0])

    def call() -> torch.Tensor:
        return twin(x) + torch.empty_like(known, device="cuda:0")

    with torch.inference_mode(inference):
        trace = record(twin, call, mode, [x])
    assert trace.outputs

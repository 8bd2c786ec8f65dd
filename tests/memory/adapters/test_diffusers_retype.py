"""Page-locked twins follow a cast of their component."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.adapters.diffusers import GROUP_HOOKS, apply_group_offload, hook_of
from lowtide.memory.adapters.diffusers_retype import follow_casts


def offloaded(accelerator: Any, low: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
    net.half().requires_grad_(False)
    apply_group_offload(
        net,
        accelerator.device,
        offload_type="leaf_level",
        blocks=1,
        stream=True,
        record_stream=False,
        low_cpu_mem=low,
    )
    return net


def twins(net: torch.nn.Module) -> list[torch.Tensor]:
    hooks = [hook_of(part, GROUP_HOOKS[0]) for part in net.modules()]
    return [t for hook in hooks if hook for t in hook.group.cpu_param_dict.values()]


def test_without_it_the_twins_keep_the_old_type(accelerator: Any) -> None:
    net = offloaded(accelerator)
    net.float()
    assert {twin.dtype for twin in twins(net)} == {torch.float16}


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("method", ["float", "to"])
def test_a_forward_after_the_cast_runs_in_the_new_type(
    accelerator: Any, method: str, low: bool
) -> None:
    net = offloaded(accelerator, low)
    follow_casts(net)
    before = [twin.clone() for twin in twins(net)]
    net.float() if method == "float" else net.to(torch.float32)
    assert {twin.dtype for twin in twins(net)} == {torch.float32}
    assert all(torch.equal(a.float(), b) for a, b in zip(before, twins(net), strict=True))
    assert all(twin.is_pinned() != low for twin in twins(net))
    answer = net(torch.ones(1, 8).to(accelerator.device))
    assert answer.dtype == torch.float32 and answer.isfinite().all()


def test_a_cast_to_the_same_type_makes_no_new_twins(accelerator: Any) -> None:
    net = offloaded(accelerator)
    follow_casts(net)
    before = [twin.data_ptr() for twin in twins(net)]
    assert net.half() is net
    assert [twin.data_ptr() for twin in twins(net)] == before


def test_the_undo_gives_the_methods_back(accelerator: Any) -> None:
    net = offloaded(accelerator)
    names = set(vars(net))
    undo = follow_casts(net)
    assert set(vars(net)) > names
    undo()
    assert set(vars(net)) == names

"""Prefetching keeps to the peak of the first forward, and its links are pruned, not its results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.adapters.diffusers import (
    GROUP_HOOKS,
    apply_group_offload,
    hook_of,
    remove_group_offload,
)
from lowtide.memory.adapters.diffusers_prefetch import limit_prefetch
from lowtide.memory.peaks import PeakWindow
from lowtide.memory.units import MIB

SIDE = 512
LAYER = SIDE * SIDE * 4


class Net(torch.nn.Module):
    """Equal layers; one in the middle works on ``wide`` MB beside its weights."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(SIDE, SIDE, bias=False) for _ in range(6))
        self.wide = wide
        self.fails = False
        self.layers[3].register_forward_hook(self._work)

    def _work(self, _module: Any, _args: Any, output: torch.Tensor) -> None:
        torch.zeros(self.wide * MIB, dtype=torch.uint8, device=output.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for n, layer in enumerate(self.layers):
            if self.fails and n == 2:
                raise KeyError("stopped")
            x = layer(x)
        return x


def offloaded(accelerator: Any, wide: int) -> Net:
    net = Net(wide).requires_grad_(False)
    apply_group_offload(
        net,
        accelerator.device,
        offload_type="leaf_level",
        blocks=1,
        stream=True,
        record_stream=False,
        low_cpu_mem=False,
    )
    return net


def links(net: Net) -> int:
    hooks = [hook_of(layer, GROUP_HOOKS[0]) for layer in net.layers]
    return sum(hook.next_group is not None for hook in hooks)


def peak(accelerator: Any, net: Net, x: torch.Tensor) -> int:
    before = accelerator.allocated
    accelerator.reset_peaks()
    net(x)
    accelerator.synchronize()
    return accelerator.peak_allocated - before


@pytest.fixture
def x(accelerator: Any) -> torch.Tensor:
    return torch.ones(1, SIDE).to(accelerator.device)


def test_where_all_layers_are_alike_nothing_is_prefetched_beyond_one(
    accelerator: Any, x: torch.Tensor
) -> None:
    free = offloaded(accelerator, 0)
    free(x)
    unlimited = peak(accelerator, free, x)
    net = offloaded(accelerator, 0)
    limit_prefetch(net, accelerator.device)
    net(x)
    assert unlimited >= 2 * LAYER > peak(accelerator, net, x)
    assert links(net) == 0 < links(free)


def test_links_stay_in_the_valleys_of_the_peak(accelerator: Any, x: torch.Tensor) -> None:
    net = offloaded(accelerator, 8)
    undo = limit_prefetch(net, accelerator.device)
    net(x)
    before = links(net)
    first = peak(accelerator, net, x)
    assert 0 < links(net) == before < 5
    assert first < LAYER + 8 * MIB + LAYER
    undo()


def test_results_are_the_same_with_and_without(accelerator: Any, x: torch.Tensor) -> None:
    free, net = offloaded(accelerator, 2), offloaded(accelerator, 2)
    limit_prefetch(net, accelerator.device)
    expected = free(x).cpu()
    for _ in range(3):
        assert torch.equal(net(x).cpu(), expected)


def test_a_forward_that_broke_off_is_measured_again(accelerator: Any, x: torch.Tensor) -> None:
    net = offloaded(accelerator, 0)
    limit_prefetch(net, accelerator.device)
    net.fails = True
    with pytest.raises(KeyError):
        net(x)
    net.fails = False
    expected = Net(0)(x.cpu())
    assert torch.allclose(net(x).cpu(), expected, atol=1e-5)
    net(x)
    assert peak(accelerator, net, x) < 2 * LAYER


def test_the_undo_takes_the_measuring_hooks_away(accelerator: Any, x: torch.Tensor) -> None:
    net = offloaded(accelerator, 0)
    before = [len(part._forward_pre_hooks) for part in net.modules()], len(net._forward_hooks)
    undo = limit_prefetch(net, accelerator.device)
    undo()
    after = [len(part._forward_pre_hooks) for part in net.modules()], len(net._forward_hooks)
    assert after == before
    net(x)
    assert links(net) > 0
    undo()
    remove_group_offload(net)


def test_each_size_of_input_is_measured_for_itself(accelerator: Any) -> None:
    small = torch.ones(1, SIDE).to(accelerator.device)
    large = torch.ones(4096, SIDE).to(accelerator.device)
    net = offloaded(accelerator, 0)
    limit_prefetch(net, accelerator.device)
    net(small)
    assert links(net) == 0
    held, window = accelerator.allocated, PeakWindow(accelerator.device)
    net(large)
    unprefetched = window.close().allocated
    assert unprefetched is not None
    assert peak(accelerator, net, large) <= unprefetched - held
    # The first layer has less to hold than those after it: a valley that the small input lacks.
    assert links(net) > 0
    net(small)
    assert links(net) == 0

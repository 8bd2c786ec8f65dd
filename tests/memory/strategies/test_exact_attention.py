from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.strategies.exact_attention import attend
from lowtide.memory.strategies.exact_map import Map, Workshop
from lowtide.memory.strategies.exact_program import Attention

CHANNELS, EDGE = 64, 40


@pytest.fixture(scope="module")
def step() -> Attention:
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(8, CHANNELS)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    four = [torch.nn.Linear(CHANNELS, CHANNELS).requires_grad_(False) for _ in range(4)]
    return Attention(norm.requires_grad_(False), *four, heads=2, scale=1.5)


def source(device: torch.device, dtype: torch.dtype = torch.float32) -> Map:
    data = torch.randn(2, CHANNELS, EDGE, EDGE, generator=torch.Generator().manual_seed(1)) * 3
    found = Map(data.to(dtype))
    found.note(found.data)
    return found


def whole(step: Attention, data: torch.Tensor) -> torch.Tensor:
    tokens = step.norm(data).flatten(2).transpose(1, 2)
    q, k, v = (
        layer(tokens).unflatten(2, (step.heads, -1)).transpose(1, 2)
        for layer in (step.query, step.key, step.value)
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    out = step.out(mixed.transpose(1, 2).flatten(2)).transpose(1, 2)
    return (out.unflatten(2, (EDGE, EDGE)) + data) / step.scale


@pytest.mark.parametrize("room", [1 << 30, 4 << 20, 1 << 20, 1 << 16])
def test_the_same_with_any_room(step: Attention, room: int) -> None:
    cpu = torch.device("cpu")
    found = source(cpu)
    expected = whole(step, found.data)
    result = attend(step, found, Workshop(cpu, cpu, room))
    assert (result.data - expected).norm() <= 1e-5 * expected.norm()
    mean, variance = result.statistics(8)
    grouped = expected.unflatten(1, (8, -1)).flatten(2)
    assert torch.allclose(mean.float(), grouped.mean(2), atol=1e-4)
    assert torch.allclose(variance.float(), grouped.var(2, correction=0), rtol=1e-4)


def test_little_room_bounds_the_memory_not_the_map(accelerator: Any, step: Attention) -> None:
    cpu, device = torch.device("cpu"), accelerator.device
    held = 2 * 2 * EDGE * EDGE * CHANNELS * 4
    peaks = {}
    for room in (8 << 20, 1 << 18):
        layers = [m.to(device) for m in (step.norm, step.query, step.key, step.value, step.out)]
        base = accelerator.allocated
        accelerator.reset_peaks()
        attend(step, source(device), Workshop(device, cpu, room))
        peaks[room] = accelerator.peak_allocated - base
        for layer in layers:
            layer.to(cpu)
    assert peaks[8 << 20] >= held
    assert peaks[1 << 18] < held / 3

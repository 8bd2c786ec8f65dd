"""A failing allocation, wherever it happens, leaves nothing behind."""

import gc

import pytest
import torch


def forward(accelerator):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.GroupNorm(2, 8),
        torch.nn.SiLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 36, 4),
    ).to(accelerator.device)
    with torch.no_grad():
        return model(torch.randn(1, 3, 8, 8).to(accelerator.device)).cpu()


def test_a_fault_at_any_allocation_leaves_no_byte_behind(accelerator):
    expected = forward(accelerator)
    total = accelerator.counters()["allocations"]
    assert total >= 10
    for n in range(1, total + 1):
        accelerator.fail_allocation(n)
        with pytest.raises(torch.OutOfMemoryError, match="injected"):
            forward(accelerator)
        gc.collect()
        assert accelerator.allocated == 0, f"after a fault at allocation {n} of {total}"
    accelerator.empty_cache()
    assert accelerator.reserved == 0
    assert torch.equal(forward(accelerator), expected)


def test_a_fault_strikes_once_and_can_be_cleared(accelerator):
    accelerator.fail_allocation(2)
    kept = torch.ones(4, device=accelerator.device)
    with pytest.raises(torch.OutOfMemoryError):
        torch.ones(4, device=accelerator.device)
    assert torch.ones(4, device=accelerator.device).eq(kept).all()
    accelerator.fail_allocation(1)
    accelerator.clear_fault()
    assert torch.ones(4, device=accelerator.device).eq(kept).all()


def test_faults_count_from_one(accelerator):
    with pytest.raises(ValueError, match="counts from 1"):
        accelerator.fail_allocation(0)


def test_a_shortage_lasts_until_the_capacity_is_given_back(accelerator):
    accelerator(capacity="64M")
    accelerator.shrink_at(2, "24M")
    kept = torch.ones(20 << 20, dtype=torch.uint8, device=accelerator.device)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError, match=r"24\.00 MiB"):
            torch.ones(20 << 20, dtype=torch.uint8, device=accelerator.device)
    del kept
    assert torch.ones(20 << 20, dtype=torch.uint8, device=accelerator.device).all()
    accelerator(capacity="64M")
    accelerator.shrink_at(1, "1M")
    accelerator.clear_fault()
    torch.ones(40 << 20, dtype=torch.uint8, device=accelerator.device)

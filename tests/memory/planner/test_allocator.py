"""The allocator's model beside the simulated accelerator's, which counts real tensors."""

from __future__ import annotations

import random

import pytest
import torch
from lowtide.memory.planner.allocator import CachingAllocator

KIB, MIB = 1 << 10, 1 << 20
SIZES = (1, 511, 700, 40 * KIB, MIB, MIB + 1, 3 * MIB, 9 * MIB, 10 * MIB, 17 * MIB, 33 * MIB + 7)


@pytest.mark.parametrize("seed", range(6))
def test_every_count_is_the_accelerators(accelerator, seed):
    chance = random.Random(seed)
    model = CachingAllocator()
    base = accelerator.allocated, accelerator.reserved
    assert base == (0, 0)
    living: list[tuple[int, torch.Tensor]] = []
    for _ in range(150):
        if living and chance.random() < 0.48:
            handle, tensor = living.pop(chance.randrange(len(living)))
            model.release(handle)
            del tensor
        else:
            size = chance.choice(SIZES) + chance.randrange(4) * 4096
            tensor = torch.empty(size, dtype=torch.uint8, device=accelerator.device)
            living.append((model.malloc(size), tensor))
            del tensor
        if chance.random() < 0.03:
            model.empty_cache()
            accelerator.empty_cache()
        assert (model.allocated, model.reserved) == (accelerator.allocated, accelerator.reserved)
    assert model.peak_allocated == accelerator.peak_allocated
    assert model.peak_reserved == accelerator.peak_reserved


def test_nothing_takes_nothing():
    model = CachingAllocator()
    model.release(model.malloc(0))
    assert (model.peak_allocated, model.peak_reserved) == (0, 0)


def test_a_remainder_of_a_mib_counts_as_allocated():
    model = CachingAllocator()
    model.malloc(21 * MIB)  # in a segment of 22
    assert model.allocated == 22 * MIB
    other = CachingAllocator()
    other.malloc(21 * MIB - 512)  # leaves more than a MiB, which is split off
    assert other.allocated == 21 * MIB - 512


def test_peaks_begin_anew_at_what_there_is():
    model = CachingAllocator()
    model.release(model.malloc(5 * MIB))
    kept = model.malloc(MIB)
    model.reset_peaks()
    assert model.peak_allocated == MIB
    assert model.peak_reserved == 22 * MIB
    model.release(kept)
    assert model.empty_cache() == 22 * MIB
    assert model.reserved == 0

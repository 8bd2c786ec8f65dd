"""Copies are counted exactly, with the temporaries a GPU's copy takes."""

import torch

KIB, MIB = 1 << 10, 1 << 20


def test_known_copies_are_counted_to_the_byte(accelerator):
    host = torch.arange(1000, dtype=torch.float32)
    accelerator.reset_counters()
    there = host.to(accelerator.device)
    twice = there.clone()
    back = twice.cpu()
    value = twice[1].item()
    counters = accelerator.counters()
    assert torch.equal(back, host)
    assert value == 1
    assert (counters["h2d"], counters["h2d_calls"]) == (4000, 1)
    assert (counters["d2h"], counters["d2h_calls"]) == (4004, 2)
    assert counters["d2d"] in (0, 4000)  # clone: a copy, or a kernel of its own
    assert counters["implicit_syncs"] == 3
    assert counters["allocations"] == 2
    assert counters["p2p"] == counters["h2d_pinned"] == counters["ooms"] == 0


def test_pinned_memory_is_counted_while_it_lives(accelerator):
    host = torch.ones(1000)
    assert not host.is_pinned()
    pinned = host.pin_memory()
    other = torch.empty(256, pin_memory=True)
    assert pinned.is_pinned()
    assert other.is_pinned()
    assert accelerator.counters()["pinned"] == 4000 + 1024
    there = pinned.to(accelerator.device, non_blocking=True)
    counters = accelerator.counters()
    assert counters["h2d_pinned"] == counters["h2d"] == 4000
    assert counters["implicit_syncs"] == 0
    assert torch.equal(there.cpu(), host)
    del pinned, other
    assert accelerator.counters()["pinned"] == 0
    assert accelerator.counters()["pinned_peak"] == 4000 + 1024


def test_explicit_waits_are_counted(accelerator):
    module = accelerator.module
    accelerator.reset_counters()
    module.synchronize()
    module.Stream().synchronize()
    event = module.Event()
    event.record()
    event.synchronize()
    assert accelerator.counters()["syncs"] == 3


def test_a_blocking_cast_is_done_on_the_host(accelerator):
    host = torch.ones(MIB, dtype=torch.float32)
    there = torch.empty(MIB, dtype=torch.float16, device=accelerator.device)
    accelerator.reset_peaks()
    there.copy_(host)
    assert accelerator.peak_allocated == there.nbytes
    assert accelerator.counters()["h2d"] == there.nbytes


def test_a_non_blocking_cast_takes_device_memory(accelerator):
    host = torch.ones(MIB, dtype=torch.float32)
    there = torch.empty(MIB, dtype=torch.float16, device=accelerator.device)
    accelerator.reset_peaks()
    there.copy_(host, non_blocking=True)
    assert accelerator.peak_allocated == there.nbytes + host.nbytes
    assert accelerator.counters()["h2d"] == host.nbytes
    assert there.eq(1).all()


def test_a_transposed_source_is_copied_through_a_temporary(accelerator):
    host = torch.arange(6.0).reshape(2, 3).t()
    there = torch.empty(3, 2, device=accelerator.device)
    there.copy_(host)
    assert torch.equal(there.cpu(), host)
    kept = host.to(accelerator.device)
    assert kept.stride() == host.stride()
    assert accelerator.counters()["h2d"] == 48


def test_fp8_weights_are_stored_moved_and_cast(accelerator):
    host = torch.linspace(-4, 4, 1024)
    expected = host.to(torch.float8_e4m3fn)
    moved = expected.to(accelerator.device)
    assert accelerator.allocated == 1024
    cast = host.to(accelerator.device).to(torch.float8_e4m3fn)
    assert torch.equal(cast.cpu().view(torch.uint8), expected.view(torch.uint8))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(moved.to(dtype).cpu(), expected.to(dtype))
    assert torch.empty(4, dtype=torch.float8_e4m3fn, device=accelerator.device).nbytes == 4

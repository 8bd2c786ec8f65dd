"""The allocator's arithmetic: the caching allocator's rules, byte by byte."""

import sys

import pytest
import torch

KIB, MIB = 1 << 10, 1 << 20


def take(accelerator, size):
    return torch.empty(size, dtype=torch.uint8, device=accelerator.device)


@pytest.mark.parametrize(
    ("asked", "given"), [(1, 512), (512, 512), (513, 1024), (MIB + 1, MIB + 512)]
)
def test_sizes_are_rounded_to_512_bytes(accelerator, asked, given):
    tensor = take(accelerator, asked)
    assert accelerator.allocated == given
    assert accelerator.stats()["requested_bytes.all.current"] == asked
    del tensor
    assert accelerator.allocated == 0


@pytest.mark.parametrize(
    ("asked", "segment"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB),
    ],
)
def test_segments_have_the_sizes_of_cudas_allocator(accelerator, asked, segment):
    tensor = take(accelerator, asked)
    assert accelerator.reserved == segment
    del tensor
    assert accelerator.reserved == segment  # cached
    accelerator.empty_cache()
    assert accelerator.reserved == 0


def test_small_and_large_requests_do_not_share_a_segment(accelerator):
    small, large = take(accelerator, KIB), take(accelerator, 2 * MIB)
    assert accelerator.reserved == 22 * MIB
    assert {block["pool"] for block in accelerator.snapshot()} == {"small", "large"}
    del small, large


def test_blocks_split_and_merge_again(accelerator):
    tensors = [take(accelerator, KIB) for _ in range(3)]
    sizes = [(block["size"], block["state"]) for block in accelerator.snapshot()]
    assert sizes == [(KIB, "allocated")] * 3 + [(2 * MIB - 3 * KIB, "free")]
    del tensors[1]
    assert [block["state"] for block in accelerator.snapshot()] == [
        "allocated",
        "free",
        "allocated",
        "free",
    ]
    assert accelerator.stats()["inactive_split_bytes.all.current"] == 2 * MIB - 2 * KIB
    tensors.clear()
    assert [(block["size"], block["state"]) for block in accelerator.snapshot()] == [
        (2 * MIB, "free")
    ]
    assert accelerator.stats()["inactive_split_bytes.all.current"] == 0


def test_large_remainders_up_to_one_mib_are_not_split_off(accelerator):
    tensor = take(accelerator, 20 * MIB - MIB)  # its own segment: 20 MiB, rest 1 MiB
    assert accelerator.allocated == 20 * MIB
    del tensor


def test_the_best_fit_is_reused(accelerator):
    tensors = [take(accelerator, size * KIB) for size in (8, 1, 4, 1)]
    hole_of_4k = tensors[2].data_ptr()
    del tensors[0], tensors[1]  # frees the holes of 8 and 4 KiB
    assert take(accelerator, 3 * KIB).data_ptr() == hole_of_4k


def test_partly_used_segments_survive_empty_cache(accelerator):
    kept, dropped = take(accelerator, KIB), take(accelerator, KIB)
    del dropped
    accelerator.empty_cache()
    assert accelerator.reserved == 2 * MIB
    del kept


def test_running_out_raises_with_sizes_and_recovers_to_zero(accelerator):
    accelerator(capacity="60M")
    tensors = []
    with pytest.raises(torch.OutOfMemoryError) as caught:
        while True:
            tensors.append(take(accelerator, 12 * MIB))
    assert len(tensors) == 5
    message = str(caught.value)
    assert "out of memory. Tried to allocate 12.00 MiB" in message
    assert "total capacity of 60.00 MiB of which 0 bytes is free" in message
    assert "60.00 MiB is allocated by PyTorch" in message
    assert accelerator.counters()["ooms"] == 1
    tensors.clear()
    del caught
    accelerator.empty_cache()
    assert (accelerator.allocated, accelerator.reserved, accelerator.free) == (0, 0, 60 * MIB)


def test_cached_segments_are_given_back_before_failing(accelerator):
    accelerator(capacity="40M")
    tensors = [take(accelerator, 12 * MIB) for _ in range(3)]
    tensors.clear()
    tensor = take(accelerator, 30 * MIB)
    assert accelerator.counters()["retries"] == 1
    assert accelerator.counters()["ooms"] == 0
    del tensor


def test_free_memory_is_capacity_minus_reserved_and_overhead(accelerator):
    accelerator(capacity="100M", overhead=7 * MIB)
    tensor = take(accelerator, KIB)
    assert accelerator.free == 91 * MIB
    assert accelerator.module.mem_get_info() == (91 * MIB, 100 * MIB)
    del tensor


def test_freed_and_fresh_memory_is_poisoned(accelerator):
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        fresh = torch.empty(64, dtype=dtype, device=accelerator.device)
        assert fresh.float().isnan().all()
    value = torch.ones(64, device=accelerator.device)
    address = value.data_ptr()
    del value
    again = torch.empty(64, device=accelerator.device)
    assert again.data_ptr() == address
    assert again.isnan().all()


def test_without_poison_freed_memory_keeps_its_bytes(accelerator):
    accelerator(poison=False)
    value = torch.ones(64, device=accelerator.device)
    address = value.data_ptr()
    del value
    again = torch.empty(64, device=accelerator.device)
    assert again.data_ptr() == address
    assert again.eq(1).all()


def test_a_recorded_block_waits_for_its_stream(accelerator):
    side = accelerator.module.Stream()
    tensor = take(accelerator, KIB)
    address = tensor.data_ptr()
    tensor.record_stream(side)
    del tensor
    stats = accelerator.stats()
    assert stats["allocated_bytes.all.current"] == 0
    assert stats["active_bytes.all.current"] == KIB
    assert take(accelerator, KIB).data_ptr() != address
    side.synchronize()
    assert accelerator.stats()["active_bytes.all.current"] == 0
    assert take(accelerator, KIB).data_ptr() == address


def test_streams_do_not_share_free_blocks(accelerator):
    tensor = take(accelerator, KIB)
    address = tensor.data_ptr()
    del tensor
    with accelerator.module.stream(accelerator.module.Stream()):
        assert take(accelerator, KIB).data_ptr() != address
    assert take(accelerator, KIB).data_ptr() == address


def test_the_peak_names_its_operator(accelerator):
    left = torch.ones(256, 256, device=accelerator.device)
    accelerator.reset_peaks()
    assert accelerator.peak_op == ""
    assert (left @ left).add_(1)[0, 0].item() == 257
    assert accelerator.peak_op == "aten::mm"
    assert accelerator.peak_allocated == 2 * 256 * KIB


def test_the_summary_of_a_cuda_device_can_be_printed(accelerator):
    # ComfyUI prints it when a node is out of memory, and would not survive an error in it.
    if accelerator.device.type != "cuda":
        pytest.skip("torch has a summary for CUDA only")
    held = torch.empty(3 << 20, dtype=torch.uint8, device=accelerator.device)
    assert "3072 KiB" in torch.cuda.memory.memory_summary()
    del held


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4 * KIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc says what is resident")
def test_released_memory_is_the_hosts_again_unless_its_pages_are_kept(accelerator):
    before = _resident()
    take(accelerator, 256 * MIB).fill_(1)
    accelerator.empty_cache()
    assert _resident() < before + 16 * MIB
    accelerator(keep_pages=True)
    tensor = take(accelerator, 256 * MIB).fill_(1)
    address = tensor.data_ptr()
    del tensor
    accelerator.empty_cache()
    assert accelerator.reserved == 0
    assert _resident() > before + 240 * MIB
    assert take(accelerator, 256 * MIB).data_ptr() == address
    accelerator.empty_cache()
    accelerator(keep_pages=False)
    assert _resident() < before + 16 * MIB


def test_a_watch_has_peaks_of_its_own(accelerator):
    held = take(accelerator, 4 * MIB)
    accelerator.watch()
    assert accelerator.watched == (4 * MIB, 20 * MIB)
    more = take(accelerator, 30 * MIB)
    del more
    accelerator.reset_peaks()
    accelerator.module.reset_peak_memory_stats()
    assert accelerator.watched == (34 * MIB, 50 * MIB)
    accelerator.empty_cache()
    accelerator.watch()
    assert accelerator.watched == (4 * MIB, 20 * MIB)
    del held

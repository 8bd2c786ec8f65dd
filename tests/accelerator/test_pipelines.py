"""Whole pipelines: the CPU's images to the bit, the same peaks each time, nothing left."""

import gc

import pytest
import torch
from lowtide.memory.adapters.synthetic import build, run

TINY = ("tiny-sd15", "tiny-sdxl", "tiny-flux")


def small_run(pipe):
    return run(pipe, size=64, steps=1)


@pytest.mark.parametrize("name", TINY)
def test_float32_images_equal_the_cpus_and_peaks_repeat(accelerator, name):
    pipe = build(name, "float32")
    expected = small_run(pipe)
    pipe.to(accelerator.device)
    held = accelerator.allocated
    peaks = []
    for _ in range(2):
        accelerator.reset_peaks()
        assert torch.equal(small_run(pipe), expected)
        gc.collect()
        assert accelerator.allocated == held
        peaks.append((accelerator.peak_allocated, accelerator.peak_op))
    assert peaks[0] == peaks[1]
    assert peaks[0][0] > held
    assert peaks[0][1].startswith("aten::")
    del pipe
    gc.collect()
    accelerator.empty_cache()
    assert (accelerator.allocated, accelerator.reserved) == (0, 0)


def test_float16_images_are_close_to_the_cpus_in_float32(accelerator):
    expected = small_run(build("tiny-sd15", "float32"))
    found = small_run(build("tiny-sd15", "float16").to(accelerator.device))
    assert found.isfinite().all()
    assert (found - expected).abs().max().item() < 0.05


def test_out_of_memory_in_a_pipeline_then_a_run_that_fits(accelerator):
    pipe = build("tiny-sd15", "float32")
    expected = small_run(pipe)
    accelerator(capacity="4M")
    with pytest.raises(torch.OutOfMemoryError):
        small_run(pipe.to(accelerator.device))
    pipe.to("cpu")
    gc.collect()
    accelerator.empty_cache()
    assert (accelerator.allocated, accelerator.reserved) == (0, 0)
    accelerator(capacity="1G")
    assert torch.equal(small_run(pipe.to(accelerator.device)), expected)

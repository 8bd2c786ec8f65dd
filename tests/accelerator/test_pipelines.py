"""Whole pipelines: the CPU's images to the bit, the same peaks each time, nothing left."""

import gc
from functools import partial

import pytest
import torch
from diffusers.models.transformers import transformer_flux
from lowtide.memory.adapters.synthetic import build, run

TINY = ("tiny-sd15", "tiny-sdxl", "tiny-flux")


def small_run(pipe):
    return run(pipe, size=64, steps=1)


def positions_as_on(flavour, monkeypatch):
    """diffusers computes FLUX's positions in float32 on npu, in float64 elsewhere."""
    if flavour == "npu":
        embed = transformer_flux.get_1d_rotary_pos_embed
        exact = partial(positions, embed)
        monkeypatch.setattr(transformer_flux, "get_1d_rotary_pos_embed", exact)


def positions(embed, *args, freqs_dtype=None, **kwargs):
    return embed(*args, freqs_dtype=torch.float32, **kwargs)


@pytest.mark.parametrize("name", TINY)
def test_float32_images_equal_the_cpus_and_peaks_repeat(accelerator, name, monkeypatch):
    positions_as_on(accelerator.flavour, monkeypatch)
    pipe = build(name, "float32")
    expected = small_run(pipe)
    monkeypatch.undo()
    small_run(pipe.to(accelerator.device))
    gc.collect()
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

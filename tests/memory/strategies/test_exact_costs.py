from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.strategies.exact_costs import Plan, plan, room_for, scale_of
from lowtide.memory.strategies.exact_program import program_of
from lowtide.memory.strategies.exact_tiling import planned, strips, whole_bytes
from lowtide.memory.units import MIB
from lowtide.tests.memory.strategies.pipes import tiny

PARTS = ("decoder", "encoder")
EDGE = 256


@pytest.fixture(params=["float32", "float16"])
def vae(request: Any, accelerator: Any) -> Any:
    return tiny("tiny-flux", request.param).vae.to(accelerator.device)


def sample_of(vae: Any, part: str, edge: int = EDGE) -> torch.Tensor:
    latents = vae.config.latent_channels
    shape = (1, latents, edge // 8, edge // 8) if part == "decoder" else (1, 3, edge, edge)
    found = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return found.to(vae.device, vae.dtype)


def chosen(vae: Any, part: str, sample: torch.Tensor, **settings: Any) -> Plan:
    factor = 8 if part == "decoder" else 1
    height, width = (length * factor for length in sample.shape[-2:])
    found = planned(getattr(vae, part), 1, height, width, sample.element_size(), 128, **settings)
    assert found is not None
    return found


def run(accelerator: Any, vae: Any, part: str, sample: torch.Tensor, how: Plan | None) -> Any:
    """The result, the peak above what was there, and the bytes moved."""
    accelerator.reset_counters()
    held = accelerator.allocated - sample.nbytes
    accelerator.reset_peaks()
    with torch.no_grad():
        if how is None:
            found = getattr(vae, part)(sample)
        else:
            with strips(vae, part, how):
                found = getattr(vae, part)(sample)
    peak, moved = accelerator.peak_allocated - held, accelerator.counters()
    return found.float().cpu(), peak, moved["h2d"] + moved["d2h"]


@pytest.mark.parametrize("part", PARTS)
def test_the_peak_is_the_planned_one(accelerator: Any, vae: Any, part: str) -> None:
    sample = sample_of(vae, part)
    free = chosen(vae, part, sample)
    for settings in (
        {},
        {"keep": 4 * MIB},
        {"keep": 1 << 40},
        {"limit": free.strips // 2},
        {"limit": 2 * free.strips},
    ):
        how = chosen(vae, part, sample, **settings)
        _, peak, _ = run(accelerator, vae, part, sample, how)
        assert how.peak / 2 < peak <= how.peak, (settings, peak / MIB, how.peak / MIB)
        assert how.peak <= settings.get("limit", 1 << 50)


@pytest.mark.parametrize("part", PARTS)
def test_where_maps_wait_changes_bytes_moved_and_no_bit(
    accelerator: Any, vae: Any, part: str
) -> None:
    sample = sample_of(vae, part)
    plans = [chosen(vae, part, sample, keep=keep) for keep in (0, 4 * MIB, 1 << 40)]
    rows = [run(accelerator, vae, part, sample, how) for how in plans]
    images, peaks, moved = zip(*rows, strict=True)
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
    assert moved[0] > moved[1] > moved[2] < 2 * MIB, moved
    assert peaks[0] < peaks[1] < peaks[2]
    assert [how.staging for how in plans] == [
        "in host memory",
        "on the device where they fit",
        "on the device",
    ]


@pytest.mark.parametrize("part", PARTS)
def test_less_than_one_row_still_runs(accelerator: Any, vae: Any, part: str) -> None:
    sample = sample_of(vae, part, 64)
    expected, untiled, _ = run(accelerator, vae, part, sample, None)
    how = chosen(vae, part, sample, limit=1)
    found, peak, _ = run(accelerator, vae, part, sample, how)
    assert peak <= how.peak < untiled / 2 and how.keep == 0
    bound = 1e-5 if vae.dtype is torch.float32 else 5e-3
    assert (found - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("part", PARTS)
def test_the_whole_samples_peak(accelerator: Any, vae: Any, part: str) -> None:
    sample = sample_of(vae, part)
    _, peak, _ = run(accelerator, vae, part, sample, None)
    found = whole_bytes(getattr(vae, part), 1, EDGE, EDGE, sample.element_size())
    assert found is not None and 0.6 * peak < found < 1.5 * peak, (found / MIB, peak / MIB)


def test_a_room_is_that_of_a_tile(vae: Any) -> None:
    program = program_of(vae.decoder)
    assert program is not None and scale_of(program) == 8
    small, large = (plan(program, (1, 16, 64, 64), 4, edge) for edge in (8, 16))
    assert small.room == room_for(program, 64, 4) and large.room == 4 * small.room
    assert small.strips < large.strips and small.maps == large.maps


def test_a_batch_takes_its_share_of_the_room(vae: Any) -> None:
    program = program_of(vae.decoder)
    assert program is not None
    one, three = (plan(program, (count, 16, 64, 64), 4, 16) for count in (1, 3))
    assert three.maps == 3 * one.maps and three.strips < 1.5 * one.strips

"""Cases: VAEs of videos and of sound, tiny ones, and those that tile themselves."""

from __future__ import annotations

import contextlib
import copy

import torch
from lowtide.memory.adapters.comfy.tile import Tile
from lowtide.memory.adapters.comfy.vae import VaePlan, described, tiling
from lowtide.memory.adapters.comfy.vae_jobs import choose, tiles
from lowtide.memory.adapters.comfy.vae_room import Room
from lowtide.memory.errors import BudgetError
from vaes import IMAGE, LATENT, VAE, asked_of_core, balanced, plan, smooth, spied, tiny, video

UNKNOWN = Room(None, 0)


def case_sound_is_not_cut() -> None:
    vae = copy.copy(VAE)
    vae.latent_dim = 1
    assert not tiles(vae)
    vae.latent_dim, vae.extra_1d_channel = 2, 16
    assert not tiles(vae)
    assert tiles(VAE)
    twin = tiling(vae, plan())
    for work, sample in (("decode", LATENT), ("encode", IMAGE.movedim(-1, 1))):
        job = choose(twin, work, tuple(sample.shape), UNKNOWN)
        assert job.tile is None and job.strips is None
    assert described(twin) is None


def case_a_video_is_decoded_and_encoded_in_tiles() -> None:
    vae = video()
    latent, pixels = smooth(1, 4, 3, 24, 24), smooth(9, 3, 192, 192).movedim(1, -1)
    with torch.inference_mode():
        expected = vae.decode(latent), vae.encode(pixels)
        twin, asked = spied(plan(vae_tile_size=128), vae)
        with asked_of_core() as seen:
            found = twin.decode(latent), twin.encode(pixels)
    assert [work for work, _ in asked] == ["decode", "encode"]
    assert asked[0][1] == Tile(16, 4, 16, 2).arguments()
    assert asked[1][1] == Tile(128, 32, 64, 8).arguments()
    assert seen == [7000 * 3 * 16 * 16 * 64, 6000 * 9 * 128 * 128], seen
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().mean() < 0.2 * other.std(), (one - other).abs().mean()


def case_a_budget_makes_a_videos_tiles_smaller_and_then_shorter() -> None:
    vae = video()
    for work, shape, unit in (
        ("decode", (1, 4, 30, 64, 64), 8),
        ("encode", (1, 3, 120, 512, 512), 1),
    ):
        estimate = getattr(vae, f"memory_used_{work}")
        frames = []
        for part in (1.0, 0.2, 0.05, 0.004):
            twin = tiling(vae, VaePlan(plan().config, False, 1))
            most = int(part * estimate(shape, torch.float32))
            job = choose(twin, work, shape, Room(most, most))
            assert job.tile is not None or part == 1.0
            assert job.need <= most or job.tile.frames in (2, 8), (work, part, job)
            frames.append(job.tile.frames if job.tile else 0)
            assert job.tile is None or job.tile.edge * unit >= 64
        assert frames[-1] < frames[1], frames


def case_a_short_video_under_a_budget_is_estimated_by_its_frames() -> None:
    vae = video()
    pixels = smooth(9, 3, 128, 128).movedim(1, -1)
    budget = int(vae.patcher.model_size() + vae.memory_used_encode((1, 3, 9, 128, 128), None))
    twin = tiling(vae, VaePlan(plan(vae_tile_size=128).config, False, budget))
    with torch.inference_mode(), asked_of_core() as seen:
        assert twin.encode(pixels).shape == (1, 4, 3, 16, 16)
    assert seen == [vae.memory_used_encode((1, 3, 9, 128, 128), None)]


def case_images_for_a_video_vae_are_a_batch_where_it_takes_them_so() -> None:
    vae = video()
    vae.not_video = True
    twin = tiling(vae, plan(vae_tile_size=128))
    with torch.inference_mode(), asked_of_core() as seen:
        assert twin.encode(torch.rand(2, 192, 192, 3)).shape == (2, 4, 1, 24, 24)
    assert seen == [vae.memory_used_encode((2, 3, 1, 128, 128), None)]


def case_a_tiny_vae_goes_whole_while_memory_lasts() -> None:
    vae = tiny()
    with torch.inference_mode():
        expected = vae.decode(LATENT)
        twin, asked = spied(VaePlan(balanced(), False), vae)
        assert torch.equal(twin.decode(LATENT), expected) and asked == []
        assert "takes little" in described(twin)[1]
        twin, asked = spied(VaePlan(balanced(), False, vae.patcher.model_size() + (1 << 20)), vae)
        with contextlib.suppress(BudgetError):  # the smallest tiles may be too large
            twin.decode(LATENT)
        assert len(asked) == 1
        twin, asked = spied(plan(), vae)
        twin.decode(LATENT)
        assert len(asked) == 1, "asked for by hand"


def case_a_vae_that_tiles_itself_is_asked_to() -> None:
    if not hasattr(VAE, "handles_tiling"):
        return
    asked = []

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def decode_tiled(self, latent, **arguments):
            asked.append(arguments)
            return latent[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)

    vae = copy.copy(VAE)
    vae.first_stage_model, vae.handles_tiling = Own(), True
    twin = tiling(vae, VaePlan(balanced(), False))
    with torch.inference_mode():
        assert twin.decode(LATENT).shape == (1, 256, 256, 3)
    assert asked == [{"tile_x": 16, "tile_y": 16, "overlap": 4}], asked
    assert "own tiles" in described(twin)[1]
    assert twin.memory_used_decode(LATENT.shape, torch.float32) == VAE.memory_used_decode(
        LATENT.shape, torch.float32
    )

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from lowtide.memory.errors import ConfigError, TargetError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.strategies.base import Applied, Skipped
from lowtide.memory.strategies.vae_tiling import VaeTiling, apply, spatial_factor, starts, weights
from lowtide.tests.memory.strategies.pipes import structure, tiny


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "expected"),
    [
        (64, 32, 8, [0, 16, 32]),
        (128, 32, 8, [0, 24, 48, 72, 96]),
        (64, 64, 16, [0]),
        (16, 32, 8, [0]),
        (65, 64, 0, [0, 1]),
        (64, 32, 0, [0, 32]),
    ],
)
def test_tiles_have_full_size_and_reach_the_edge(
    length: int, tile: int, overlap: int, expected: list[int]
) -> None:
    assert starts(length, tile, overlap) == expected


@pytest.mark.parametrize("tile", [5, 8, 13, 32])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("length", [17, 33, 64, 100])
def test_blending_weights_sum_to_one_everywhere(length: int, tile: int, share: float) -> None:
    edge = min(tile, length)
    begins = starts(length, edge, int(edge * share))
    assert begins[0] == 0 and begins[-1] + edge == length
    assert all(b - a <= edge - int(edge * share) for a, b in itertools.pairwise(begins))
    total = torch.zeros(length * 8)
    for begin, ramp in zip(begins, weights(length, edge, begins, 8.0), strict=True):
        assert ramp.min() > 0
        total[begin * 8 : begin * 8 + edge * 8] += ramp
    assert torch.allclose(total, torch.ones(length * 8), atol=1e-5)


class PointwiseVae(torch.nn.Module):
    """Every latent becomes 8 x 8 equal pixels: tiles must give exactly the whole image."""

    spatial_compression_ratio = 8

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def decode(self, z: torch.Tensor, return_dict: bool = True, **extra: Any) -> Any:
        self.seen.append(tuple(z.shape))
        image = z.repeat_interleave(8, -1).repeat_interleave(8, -2)
        return {"sample": image} if return_dict == "dict" else (image,)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        self.seen.append(tuple(x.shape))
        return (x[..., ::8, ::8],)


def config(edge: int) -> VaeTiling:
    return VaeTiling(lambda height, width: edge)


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (2, 4, 33, 80), (1, 4, 3, 20, 47)])
def test_a_pointwise_vae_gives_the_same_image_in_tiles(shape: tuple[int, ...]) -> None:
    vae = PointwiseVae()
    latents = torch.randn(shape)
    whole = vae.decode(latents)[0]
    vae.seen.clear()
    apply(config(128), vae, "vae")
    assert torch.allclose(vae.decode(latents)[0], whole, atol=1e-5)
    assert len(vae.seen) > 1
    assert all(max(seen[-2:]) <= 16 for seen in vae.seen)
    pixels = torch.randn(*shape[:-2], shape[-2] * 8, shape[-1] * 8)
    whole = pixels[..., ::8, ::8]
    vae.seen.clear()
    assert torch.allclose(vae.encode(pixels)[0], whole, atol=1e-5)
    assert len(vae.seen) > 1


def test_what_cannot_be_cut_runs_whole() -> None:
    vae = PointwiseVae()
    apply(config(128), vae, "vae")
    mask = torch.zeros(1, 1, 64, 64)
    vae.decode(torch.randn(1, 4, 64, 64), mask=mask)
    vae.decode(torch.randn(1, 4, 16, 16))
    vae.encode(torch.randn(1, 3, 130, 256))
    assert [seen[-2:] for seen in vae.seen] == [(64, 64), (16, 16), (130, 256)]


def test_an_answer_without_a_tensor_says_what_to_do() -> None:
    vae = PointwiseVae()
    vae.decode = lambda z: ("no tensor",)  # type: ignore[method-assign]
    apply(config(128), vae, "vae")
    with pytest.raises(TargetError, match="enable_vae_tiling=False"):
        vae.decode(torch.randn(1, 4, 64, 64))


def test_a_vae_that_names_no_factor_is_skipped() -> None:
    assert isinstance(apply(config(128), torch.nn.Linear(1, 1), "vae"), Skipped)


@pytest.mark.parametrize("edge", [128, 256, 512, 1024])
def test_the_tile_follows_the_image_so_that_it_really_tiles(edge: int) -> None:
    chosen = MemoryOptimizationConfig.from_level("ultra").tile_for(edge, edge)
    vae = PointwiseVae()
    apply(VaeTiling(MemoryOptimizationConfig.from_level("ultra").tile_for), vae, "vae")
    vae.decode(torch.randn(1, 4, edge // 8, edge // 8))
    assert chosen <= edge // 2
    assert len(vae.seen) >= 9
    assert {seen[-2:] for seen in vae.seen} == {(chosen // 8, chosen // 8)}


def test_a_real_vae_differs_little_and_less_than_by_diffusers_tiles() -> None:
    pipe = tiny("tiny-sdxl", "float32")
    vae = pipe.vae
    assert spatial_factor(vae) == 2 ** (len(vae.config.block_out_channels) - 1)
    before = structure(pipe)
    latents = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    factor = spatial_factor(vae) or 8
    edge = 16 * factor
    with torch.no_grad():
        whole = vae.decode(latents).sample
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = edge, 16
        theirs = (vae.decode(latents).sample - whole).abs().max()
        outcome = apply(config(edge), vae, "vae")
        ours = (vae.decode(latents).sample - whole).abs().max()
        assert isinstance(outcome, Applied)
        outcome.undo()
        assert vae.use_tiling is True, "the user's own setting comes back"
        vae.disable_tiling()
        assert torch.equal(vae.decode(latents).sample, whole)
    assert 0 < ours < theirs
    vae.tile_sample_min_size = before["vae."]["plain"]["tile_sample_min_size"]
    vae.tile_latent_min_size = before["vae."]["plain"]["tile_latent_min_size"]
    assert structure(pipe) == before


def test_moments_of_an_encoder_are_tiled_into_a_distribution() -> None:
    vae = tiny("tiny-sd15", "float32").vae
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = vae.encode(pixels).latent_dist
        apply(config(64), vae, "vae")
        tiled = vae.encode(pixels).latent_dist
    assert type(tiled) is type(whole)
    assert tiled.mean.shape == whole.mean.shape
    assert 0 < (tiled.mean - whole.mean).abs().mean() < 0.5 * whole.mean.abs().mean()


def test_a_tile_under_the_factor_is_refused() -> None:
    tile = MemoryOptimizationConfig.from_level("ultra", vae_tile_size=64)
    with pytest.raises(ConfigError, match=r"64 pixels does not suit this VAE, which makes 64"):
        tile.validate(vae_factor=64)

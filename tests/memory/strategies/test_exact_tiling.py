from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from lowtide.memory.errors import ConfigError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.optimizer import MemoryOptimizer
from lowtide.memory.strategies import exact_tiling, vae_tiling
from lowtide.memory.strategies.base import Applied, Skipped
from lowtide.tests.memory.strategies.pipes import structure, tiny

ROUNDING = 1e-5
"""Relative L2 difference to the untiled result that float32 may have."""

PIPELINES = ("tiny-sd15", "tiny-sdxl", "tiny-flux")


def latents(vae: Any, height: int, width: int, images: int = 1) -> torch.Tensor:
    shape = (images, vae.config.latent_channels, height // 8, width // 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(vae.dtype)


def picture(vae: Any, height: int, width: int, images: int = 1) -> torch.Tensor:
    shape = (images, 3, height, width)
    return (torch.rand(shape, generator=torch.Generator().manual_seed(4)) * 2 - 1).to(vae.dtype)


def decoded(vae: Any, z: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vae.decode(z.to(vae.device)).sample.float().cpu()


def encoded(vae: Any, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vae.encode(image.to(vae.device)).latent_dist.parameters.float().cpu()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def exact(vae: Any, edge: int = 64) -> Applied:
    outcome = exact_tiling.apply(exact_tiling.ExactTiling(lambda _h, _w: edge), vae, "vae")
    assert isinstance(outcome, Applied)
    return outcome


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize(("height", "width"), [(128, 128), (200, 72), (72, 200)])
def test_the_untiled_result(name: str, height: int, width: int) -> None:
    vae = tiny(name, "float32").vae
    z, image = latents(vae, height, width), picture(vae, height, width)
    plain = decoded(vae, z), encoded(vae, image)
    exact(vae)
    assert relative(decoded(vae, z), plain[0]) <= ROUNDING
    assert relative(encoded(vae, image), plain[1]) <= ROUNDING


def test_a_batch_keeps_its_images_apart() -> None:
    vae = tiny("tiny-sdxl", "float32").vae
    z = latents(vae, 128, 128, images=3)
    z[1] *= 4
    plain = decoded(vae, z)
    exact(vae)
    assert relative(decoded(vae, z), plain) <= ROUNDING


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_as_near_the_truth_as_untiled(dtype: str, accelerator: Any) -> None:
    truth = tiny("tiny-sdxl", "float32").vae
    vae = tiny("tiny-sdxl", dtype).vae.to(accelerator.device)
    truth.load_state_dict({k: v.float().cpu() for k, v in vae.state_dict().items()})
    z = latents(vae, 128, 128)
    expected = decoded(truth, z.float())
    untiled = relative(decoded(vae, z), expected)
    exact(vae)
    assert relative(decoded(vae, z), expected) <= 1.25 * untiled


def peak_of(accelerator: Any, work: Any) -> int:
    held = accelerator.allocated
    accelerator.reset_peaks()
    work()
    return int(accelerator.peak_allocated - held)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_peak_is_near_one_tiles(dtype: str, accelerator: Any) -> None:
    vae = tiny("tiny-sdxl", dtype).vae.to(accelerator.device)
    z, image = latents(vae, 256, 256), picture(vae, 256, 256)
    for work in (lambda: decoded(vae, z), lambda: encoded(vae, image)):
        untiled = peak_of(accelerator, work)
        blending = vae_tiling.apply(vae_tiling.VaeTiling(lambda _h, _w: 128), vae, "vae")
        assert isinstance(blending, Applied)
        blended = peak_of(accelerator, work)
        blending.undo()
        strips = exact(vae, 128)
        assert peak_of(accelerator, work) <= min(1.5 * blended, 0.5 * untiled)
        strips.undo()


@pytest.mark.parametrize("offload", ["component", "sequential", "group"])
def test_weights_move_once_an_image(offload: str, accelerator: Any) -> None:
    pipe = tiny("tiny-sdxl", "float32")
    z = latents(pipe.vae, 256, 256)
    plain = decoded(pipe.vae, z)
    size = sum(p.nbytes for p in pipe.vae.decoder.parameters())
    maps = None
    for mode in ("none", offload):
        config = MemoryOptimizationConfig.from_level(
            "none", offload=mode, enable_vae_tiling=True, vae_tile_size=128
        )
        with MemoryOptimizer(config, device=accelerator.device) as optimizer:
            optimizer.optimize_pipeline(pipe)
            accelerator.reset_counters()
            with torch.no_grad():
                found = pipe.vae.decode(z.to(accelerator.device)).sample.cpu()
            moved = accelerator.counters()["h2d"]
            if offload == "component":
                pipe.maybe_free_model_hooks()
        assert relative(found, plain) <= ROUNDING
        maps = moved if maps is None else maps
    # The maps' traffic is the same; the rest is the decoder once, and the little else of a VAE.
    assert size * 0.9 <= moved - maps <= size * 2.2


def test_an_image_of_one_tile_goes_through_whole() -> None:
    vae = tiny("tiny-sd15", "float32").vae
    z = latents(vae, 128, 128)
    plain = decoded(vae, z)
    exact(vae, 128)
    assert torch.equal(decoded(vae, z), plain)


def test_gradients_take_the_untiled_way() -> None:
    vae = tiny("tiny-sd15", "float32").vae
    exact(vae)
    z = latents(vae, 128, 128).requires_grad_()
    vae.decode(z).sample.sum().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0


def test_a_tiling_the_user_had_enabled_rests_and_comes_back() -> None:
    vae = tiny("tiny-sd15", "float32").vae
    z = latents(vae, 128, 128)
    plain = decoded(vae, z)
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 64, 8
    assert relative(decoded(vae, z), plain) > ROUNDING
    outcome = exact(vae)
    assert relative(decoded(vae, z), plain) <= ROUNDING
    outcome.undo()
    assert vae.use_tiling is True


def test_the_undo_leaves_no_trace() -> None:
    pipe = tiny("tiny-sdxl", "float32")
    before = structure(pipe)
    outcome = exact(pipe.vae)
    assert structure(pipe) != before
    outcome.undo()
    assert structure(pipe) == before


def test_layers_of_other_kinds_are_blended_or_refused() -> None:
    pipe = tiny("tiny-sd15", "float32")
    channels, blocks = (8, 8, 8, 8), (1, 1, 1, 1)
    pipe.vae = AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    )
    outcome = exact_tiling.apply(exact_tiling.ExactTiling(lambda _h, _w: 64), pipe.vae, "vae")
    assert isinstance(outcome, Skipped) and not exact_tiling.known(pipe.vae)
    with MemoryOptimizer("balanced", device="cpu") as optimizer:
        optimizer.optimize_pipeline(pipe)
        assert optimizer.report is not None
        assert vae_tiling.NAME in {entry.strategy for entry in optimizer.report.applied}
    config = optimizer.config.replace(vae_tile_mode="exact")
    with pytest.raises(ConfigError, match=r"AutoencoderTiny cannot .* vae_tile_mode='auto'"):
        MemoryOptimizer(config, device="cpu").optimize_pipeline(pipe)

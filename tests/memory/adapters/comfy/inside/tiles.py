"""Cases: VAEs that work in blended tiles."""

from __future__ import annotations

import comfy.model_management as mm
import torch
from lowtide.memory.adapters.comfy.tile import Tile
from lowtide.memory.adapters.comfy.vae import VaePlan, tiling
from vaes import (
    DECODED,
    ENCODED,
    IMAGE,
    LATENT,
    VAE,
    Noting,
    asked_of_core,
    free_memory_of,
    natural,
    plan,
    smooth,
    spied,
)


def case_a_tiled_image_is_close_to_the_whole_one() -> None:
    with torch.inference_mode():
        decoded = tiling(VAE, plan()).decode(LATENT)
        encoded = tiling(VAE, plan()).encode(IMAGE)
    assert decoded.shape == DECODED.shape == (1, 256, 256, 3)
    assert encoded.shape == ENCODED.shape == (1, 4, 32, 32)
    assert 0 < (decoded - DECODED).abs().mean() < 0.05
    spread = ENCODED.abs().max()
    assert 0 < (encoded - ENCODED).abs().mean() < 0.1 * spread


def case_tiles_are_half_the_image_and_every_argument_is_given() -> None:
    vae, asked = spied(plan())
    with torch.inference_mode():
        vae.decode(LATENT)
        vae.encode(IMAGE)
    decode, encode = asked
    assert decode == ("decode", Tile(16, 4, None, None).arguments())
    assert encode == ("encode", Tile(128, 32, 64, 8).arguments())
    assert all(value is not None for name, value in encode[1].items()), encode


def case_a_small_image_is_not_cut() -> None:
    vae, asked = spied(plan(vae_tile_size=256))
    with torch.inference_mode():
        decoded = vae.decode(LATENT)
        encoded = vae.encode(IMAGE)
    assert asked == []
    assert torch.equal(decoded, DECODED)
    assert torch.equal(encoded, ENCODED)


def case_the_callers_own_tiles_are_kept() -> None:
    vae, asked = spied(plan())
    with torch.inference_mode():
        vae.decode_tiled(LATENT, tile_x=24, tile_y=24, overlap=4)
    assert asked == [("decode", {"tile_x": 24, "tile_y": 24, "overlap": 4})]


def case_a_wide_overlap_still_leaves_the_narrow_tiles_something() -> None:
    vae, asked = spied(plan(vae_tile_size=64, vae_tile_overlap=0.5))
    with torch.inference_mode():
        assert vae.decode(LATENT).shape == DECODED.shape
    assert asked[0][1]["overlap"] == 2


def case_estimates_are_of_one_tile_while_tiles_are_made() -> None:
    seen: list[float] = []
    vae = tiling(VAE, plan())
    whole = VAE.memory_used_decode(LATENT.shape, torch.float32)
    tile = VAE.memory_used_decode((1, 4, 16, 16), torch.float32)
    assert vae.memory_used_decode(LATENT.shape, torch.float32) == whole
    load, free = mm.load_models_gpu, []

    def noting(models, memory_required=0, **more):
        seen.append(memory_required)
        return load(models, memory_required=memory_required, **more)

    mm.load_models_gpu = noting
    try:
        with torch.inference_mode():
            vae.decode(LATENT)
            vae.encode(IMAGE)
    finally:
        mm.load_models_gpu = load
    encoded = VAE.memory_used_encode((1, 3, 128, 128), torch.float32)
    assert seen == [tile, encoded], (seen, tile, encoded, free)
    assert vae.memory_used_decode(LATENT.shape, torch.float32) == whole


def case_a_budget_makes_tiles_smaller() -> None:
    size = VAE.patcher.model_size()
    large = torch.randn(1, 4, 64, 64)
    for latents, budget, expected in ((32, 1 << 40, 32), (16, 0, 16), (8, -size, 16)):
        one = int(VAE.memory_used_decode((1, 4, latents, latents), torch.float32))
        vae, asked = spied(VaePlan(plan().config, False, size + one + budget), kind=Noting)
        with torch.inference_mode():
            assert vae.decode(large).shape == (1, 512, 512, 3)
        assert asked[0][1]["tile_x"] == expected, (latents, asked)


def case_the_callers_tiles_are_what_is_estimated() -> None:
    vae = tiling(VAE, plan())
    with torch.inference_mode(), asked_of_core() as seen:
        vae.decode_tiled(LATENT, tile_x=24, tile_y=16, overlap=4)
        vae.encode_tiled(IMAGE, tile_x=128, tile_y=192, overlap=32)
    decode = VAE.memory_used_decode((1, 4, 16, 24), torch.float32)
    assert seen == [decode, VAE.memory_used_encode((1, 3, 192, 128), torch.float32)], seen
    assert vae.memory_used_encode((1, 3, 256, 256), torch.float32) > seen[1]


def case_another_nodes_tiles_work_on_the_copy() -> None:
    import nodes

    node = nodes.VAEDecodeTiled()
    with torch.inference_mode():
        found = [
            node.decode(vae, {"samples": LATENT}, tile_size=128, overlap=32)[0]
            for vae in (VAE, tiling(VAE, plan()), tiling(VAE, VaePlan(plan().config, True)))
        ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def case_little_free_memory_makes_tiles_smaller() -> None:
    if VAE.patcher.load_device.type == "cpu":
        return
    large = torch.randn(1, 4, 64, 64)
    for work, expected in (("decode", 16), ("encode", 128)):
        estimate = getattr(VAE, f"memory_used_{work}")
        shape = (1, 4, 16, 16) if work == "decode" else (1, 3, 128, 128)
        free = estimate(shape, torch.float32) + VAE.patcher.model_size()
        vae, asked = spied(plan(), kind=Noting)
        with torch.inference_mode():
            vae.patcher.detach()
            with free_memory_of(int(free)):
                getattr(vae, work)(large if work == "decode" else torch.rand(1, 512, 512, 3))
        assert asked[0][1]["tile_x"] == expected, (work, asked)


def case_tiles_leave_no_seam() -> None:
    vae, latent = natural(), smooth(1, 4, 48, 48)
    twin, asked = spied(plan(vae_tile_size=256), vae)
    with torch.inference_mode():
        wrong = twin.decode(latent) - vae.decode(latent)
    assert asked
    wrong = wrong[:, 16:-16, 16:-16]  # a tile ends at the picture's edge as the whole does
    # A seam is a line along which neighbours differ more than everywhere else.
    for axis in (1, 2):
        step = wrong.diff(dim=axis).abs().mean(dim=(0, 3 - axis, 3))
        assert step.max() <= 8 * step.mean(), (axis, step.max() / step.mean())

"""Cases: VAEs that work in tiles."""

from __future__ import annotations

import copy
import weakref

import comfy.model_management as mm
import comfy.sd
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from lowtide.memory.adapters.comfy.vae import Tile, TilingVae, VaePlan, tiles, tiling
from lowtide.memory.errors import ConfigError, TargetError
from lowtide.memory.levels import MemoryOptimizationConfig

SHAPE = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3}
SHAPE |= {"ch": 32, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 1, "attn_resolutions": []}
SHAPE |= {"dropout": 0.0}
FACTOR = 8


def make() -> comfy.sd.VAE:
    torch.manual_seed(0)
    weights = AutoencoderKL(ddconfig=SHAPE, embed_dim=4).state_dict()
    vae = comfy.sd.VAE(
        sd=weights, config={"params": {"ddconfig": SHAPE, "embed_dim": 4}}, dtype=torch.float32
    )
    for parameter in vae.first_stage_model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return vae


def balanced(**more: object) -> MemoryOptimizationConfig:
    return MemoryOptimizationConfig.from_level("balanced", **more)


DEVICE = mm.get_torch_device()
VAE = make()
KIND = type(VAE)
LATENT = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1))
IMAGE = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(2))
with torch.inference_mode():
    DECODED = VAE.decode(LATENT)
    ENCODED = VAE.encode(IMAGE)


class Spied(KIND):
    """Notes what the tiled methods were asked for."""

    asked: list[tuple[str, dict[str, object]]] = []

    def decode_tiled(self, samples, **arguments):
        self.asked.append(("decode", arguments))
        return super().decode_tiled(samples, **arguments)

    def encode_tiled(self, pixel_samples, **arguments):
        self.asked.append(("encode", arguments))
        return super().encode_tiled(pixel_samples, **arguments)


def spied(plan: VaePlan) -> tuple[object, list[tuple[str, dict[str, object]]]]:
    vae = copy.copy(VAE)
    vae.__class__ = Spied
    Spied.asked.clear()
    return tiling(vae, plan), Spied.asked


def plan(**more: object) -> VaePlan:
    return VaePlan(balanced(vae_tile_mode="blended", **more), leave=False)


def exact(**more: object) -> VaePlan:
    return VaePlan(balanced(**more), leave=False)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def case_known_layers_work_in_strips_and_change_nothing() -> None:
    vae, asked = spied(exact())
    decoder, encoder = VAE.first_stage_model.decoder, VAE.first_stage_model.encoder
    assert vae.lowtide_plan.exact
    with torch.inference_mode():
        decoded, encoded = vae.decode(LATENT), vae.encode(IMAGE)
    assert asked == []
    assert relative(decoded, DECODED) <= 1e-5, relative(decoded, DECODED)
    assert relative(encoded, ENCODED) <= 1e-5, relative(encoded, ENCODED)
    assert "forward" not in vars(decoder) and "forward" not in vars(encoder)


def case_strips_take_the_memory_of_a_tile() -> None:
    if DEVICE.type == "cpu":
        return
    module = getattr(torch, DEVICE.type)
    peaks = {}
    for name, one in (("whole", VAE), ("blended", tiling(VAE, plan())), ("exact", None)):
        vae = tiling(VAE, exact()) if one is None else one
        with torch.inference_mode():
            vae.decode(LATENT)
            module.reset_peak_memory_stats()
            held = module.memory_allocated()
            vae.decode(LATENT)
        peaks[name] = module.max_memory_allocated() - held
    assert peaks["exact"] <= 1.5 * peaks["blended"] < 0.75 * peaks["whole"], peaks


def case_a_failed_decode_leaves_the_layers_as_they_were() -> None:
    vae = tiling(VAE, exact())
    conv = VAE.first_stage_model.decoder.conv_out
    conv.register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        with torch.inference_mode():
            vae.decode(LATENT)
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("the failure was swallowed")
    finally:
        conv._forward_pre_hooks.clear()
    assert "forward" not in vars(VAE.first_stage_model.decoder)


def case_other_layers_are_blended_or_refused() -> None:
    vae = copy.copy(VAE)
    vae.first_stage_model = torch.nn.Linear(1, 1)
    assert not tiling(vae, exact()).lowtide_plan.exact
    try:
        tiling(vae, exact(vae_tile_mode="exact"))
    except ConfigError as error:
        assert "vae_tile_mode='auto'" in str(error)
    else:
        raise AssertionError("it was accepted")


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
        vae, asked = spied(VaePlan(plan().config, False, size + one + budget))
        with torch.inference_mode():
            assert vae.decode(large).shape == (1, 512, 512, 3)
        assert asked[0][1]["tile_x"] == expected, (latents, asked)


def case_the_original_stays_as_it_is() -> None:
    before = dict(VAE.__dict__)
    twin = tiling(VAE, plan())
    with torch.inference_mode():
        twin.decode(LATENT)
        assert torch.equal(VAE.decode(LATENT), DECODED)
    assert type(VAE) is KIND
    assert VAE.__dict__ == before
    assert isinstance(twin, KIND)
    assert isinstance(twin, TilingVae)
    assert twin.patcher is not VAE.patcher
    assert twin.patcher.is_clone(VAE.patcher)


def case_a_second_optimisation_replaces_the_first() -> None:
    twin = tiling(tiling(VAE, plan()), VaePlan(None, False))
    with torch.inference_mode():
        assert torch.equal(twin.decode(LATENT), DECODED)
    assert type(twin).__mro__.count(TilingVae) == 1


def case_nothing_keeps_a_used_copy_alive() -> None:
    import gc

    gc.collect()
    gc.disable()
    try:
        vae = make()
        twin = tiling(vae, plan())
        with torch.inference_mode():
            twin.decode(LATENT)
        while mm.current_loaded_models:
            mm.current_loaded_models.pop().model_unload()
        gone = weakref.ref(twin)
        del twin
        assert gone() is None, "the copy is in a reference cycle"
    finally:
        gc.enable()


def case_sound_is_not_cut() -> None:
    vae = copy.copy(VAE)
    vae.latent_dim = 1
    assert not tiles(vae)
    vae.latent_dim, vae.extra_1d_channel = 2, 16
    assert not tiles(vae)
    assert tiles(VAE)
    twin = tiling(vae, plan())
    assert twin._tile_of_latent(LATENT) is None
    assert twin._tile_of_pixels(IMAGE) is None


def case_video_gets_frames_per_tile() -> None:
    vae = copy.copy(VAE)
    vae.latent_dim = 3
    vae.upscale_ratio = (lambda frames: max(0, frames * 4 - 3), 8, 8)
    twin = tiling(vae, plan())
    tile = twin._tile_of_latent(torch.zeros(1, 4, 9, 64, 64))
    assert tile == Tile(32, 8, 16, 2)
    shape = (1, 4, 30, 64, 64)
    twin.lowtide_estimates = {"decode": lambda shape, dtype: shape}
    twin.lowtide_tile = tile
    assert twin.memory_used_decode(shape, None) == (1, 4, 16, 32, 32)


def case_a_video_latent_for_an_image_vae_is_its_first_frame() -> None:
    with torch.inference_mode():
        decoded = tiling(VAE, plan(vae_tile_size=256)).decode(LATENT.unsqueeze(2))
    assert torch.equal(decoded, DECODED)


def case_options_go_to_the_whole_image() -> None:
    vae, asked = spied(plan())
    try:
        with torch.inference_mode():
            vae.decode(LATENT, vae_options={"unknown_option": 1})
    except TypeError:
        pass
    assert asked == []


def case_a_vae_without_weights_says_so() -> None:
    vae = copy.copy(VAE)
    vae.first_stage_model = None
    try:
        tiling(vae, plan())
    except TargetError as error:
        assert "no weights" in str(error)
    else:
        raise AssertionError("it was accepted")


def case_a_tile_under_the_vaes_factor_says_so() -> None:
    vae = copy.copy(VAE)
    vae.upscale_ratio = 64
    try:
        tiling(vae, plan(vae_tile_size=64))
    except ConfigError as error:
        assert "64 pixels" in str(error)
    else:
        raise AssertionError("it was accepted")


class Counted:
    """Notes how many images the model is given at once, for the length of a block."""

    def __init__(self, work: str) -> None:
        self.work = work
        self.model = VAE.first_stage_model
        self.counts: list[int] = []

    def __enter__(self) -> list[int]:
        original = getattr(self.model, self.work)

        def counted(batch, *args, **kwargs):
            self.counts.append(batch.shape[0])
            return original(batch, *args, **kwargs)

        setattr(self.model, self.work, counted)
        return self.counts

    def __exit__(self, *_: object) -> None:
        delattr(self.model, self.work)


def case_a_batch_is_worked_on_in_chunks() -> None:
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    images = torch.rand(3, 128, 128, 3, generator=torch.Generator().manual_seed(4))
    for work, batch in (("decode", latents), ("encode", images)):
        with torch.inference_mode(), Counted(work) as counts:
            expected = getattr(VAE, work)(batch)
        assert counts == [3], "the core takes a batch at once"
        for config in (balanced(vae_tile_size=64), None):
            for chunk, sizes in ((1, [1, 1, 1]), (2, [2, 1]), (None, [3])):
                twin = tiling(VAE, VaePlan(config, leave=False, chunk=chunk))
                with torch.inference_mode(), Counted(work) as counts:
                    found = getattr(twin, work)(batch)
                assert counts == sizes, (work, chunk, counts)
                assert (found.shape, found.device) == (expected.shape, expected.device)
                assert relative(found, expected) <= 1e-5, (work, chunk)


def case_frames_of_a_video_are_no_batch() -> None:
    twin = tiling(VAE, VaePlan(None, leave=False, chunk=1))
    assert twin._holds_images(IMAGE)
    twin.latent_dim = 3
    assert not twin._holds_images(IMAGE)
    assert twin._holds_images(IMAGE.unsqueeze(0))
    twin.not_video = True
    assert twin._holds_images(IMAGE)

"""Cases: the copy of a VAE, and the VAE it was made of."""

from __future__ import annotations

import copy
import gc
import weakref

import comfy.model_management as mm
import torch
from lowtide.memory.adapters.comfy.vae import TilingVae, VaePlan, tiling
from lowtide.memory.errors import ConfigError, TargetError
from vaes import DECODED, IMAGE, KIND, LATENT, VAE, balanced, make, plan, relative, spied


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

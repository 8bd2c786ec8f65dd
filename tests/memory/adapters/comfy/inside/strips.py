"""Cases: VAEs that work in exact strips."""

from __future__ import annotations

import copy

import comfy.model_management as mm
import torch
from lowtide.memory.adapters.comfy.limits import streaming_bytes
from lowtide.memory.adapters.comfy.vae import VaePlan, described, tiling
from lowtide.memory.errors import ConfigError
from lowtide.memory.strategies import exact_passes
from vaes import (
    ACCELERATED,
    DECODED,
    DEVICE,
    ENCODED,
    IMAGE,
    LATENT,
    VAE,
    asked_of_core,
    balanced,
    exact,
    free_memory_of,
    peak_of,
    plan,
    relative,
    replaced,
    spied,
)


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


def case_a_failed_decode_leaves_the_layers_as_they_were() -> None:
    vae = tiling(VAE, exact())
    try:
        with torch.inference_mode(), replaced(exact_passes, "_convolve", lambda *_: 1 / 0):
            vae.decode(LATENT)
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("the failure was swallowed")
    assert "forward" not in vars(VAE.first_stage_model.decoder)
    assert vae.lowtide_job is None


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


def peaks() -> dict[str, int]:
    """Of a decode, whole, in blended tiles, and in strips at two levels, beside the weights."""
    found = {}
    for name, vae in (
        ("whole", VAE),
        ("blended", tiling(VAE, plan())),
        ("small", tiling(VAE, exact(vae_tile_size=128))),
        ("gentle", tiling(VAE, VaePlan(balanced(), leave=False))),
    ):
        with torch.inference_mode():
            vae.decode(LATENT)
        found[name] = peak_of(lambda vae=vae: vae.decode(LATENT))
    return found


def case_strips_take_the_memory_of_a_tile() -> None:
    if not ACCELERATED:
        return
    found = peaks()
    assert found["small"] <= 1.5 * found["blended"] < 0.75 * found["whole"], found


def case_a_gentle_level_takes_half_of_the_whole() -> None:
    if not ACCELERATED:
        return
    found = peaks()
    assert found["small"] < found["gentle"] <= 0.5 * found["whole"], found


def case_the_core_is_asked_for_what_strips_take() -> None:
    vae = tiling(VAE, VaePlan(balanced(), leave=False))
    jobs, load = [], mm.load_models_gpu

    def noting(*args, memory_required=0, **more):
        jobs.append((memory_required, vae.lowtide_job.need, vae.lowtide_job.strips is not None))
        return load(*args, memory_required=memory_required, **more)

    with torch.inference_mode(), replaced(mm, "load_models_gpu", noting):
        vae.decode(LATENT)
        vae.encode(IMAGE)
    assert len(jobs) == 2 and all(asked == need and cut for asked, need, cut in jobs), jobs
    assert vae.lowtide_job is None
    assert vae.memory_used_decode(LATENT.shape, torch.float32) == VAE.memory_used_decode(
        LATENT.shape, torch.float32
    )


def case_a_budget_says_where_maps_wait() -> None:
    if not ACCELERATED:
        return
    whole = peak_of(lambda: VAE.decode(LATENT))
    size = VAE.patcher.model_size()
    module = getattr(torch, DEVICE.type)
    images, peaks = [], []
    for part in (0.15, 0.3, 0.6, 1.2):
        budget = int(size + part * whole)
        vae = tiling(VAE, VaePlan(balanced(vae_tile_size=128), True, budget))
        module.reset_peak_memory_stats()
        with torch.inference_mode():
            images.append(vae.decode(LATENT))
        peaks.append(module.max_memory_allocated())
        assert peaks[-1] <= budget, (part, peaks[-1] - size, budget - size)
        assert relative(images[-1], DECODED) <= 1e-5, part
    assert peaks == sorted(peaks), peaks
    # The same strips, their maps on the host and on the device: not one bit differs.
    assert torch.equal(images[2], images[3])


def case_little_free_memory_makes_strips_lower() -> None:
    if not ACCELERATED:
        return
    vae = tiling(VAE, VaePlan(balanced(), leave=False))
    taken = []
    for free in (1 << 30, 12 << 20):
        with torch.inference_mode():
            vae.decode(LATENT)
        # Weights there already, so that all of it is for the strips.
        with free_memory_of(free):
            taken.append(peak_of(lambda: vae.decode(LATENT)))
        assert taken[-1] <= free, (taken, free)
    assert taken[1] < taken[0]


def case_an_image_of_one_tile_is_cut_where_memory_is_short() -> None:
    weights = streaming_bytes(VAE.patcher)
    for budget, cut in ((weights + (15 << 20), True), (weights + (1 << 30), False)):
        vae = tiling(VAE, VaePlan(balanced(vae_tile_size=256), False, budget))
        with torch.inference_mode(), asked_of_core() as seen:
            found = vae.decode(LATENT)
        assert relative(found, DECODED) <= 1e-5
        assert (seen[0] < 16 << 20) == cut, seen
        assert torch.equal(found, DECODED) or cut


def case_weights_may_be_streamed() -> None:
    if not ACCELERATED:
        return
    vae = tiling(VAE, exact())
    mm.unload_all_models()
    while mm.current_loaded_models:
        mm.current_loaded_models.pop().model_unload()
    size = vae.patcher.model_size()
    vae.patcher.partially_load(DEVICE, size // 3)
    model = VAE.first_stage_model
    places = {parameter.device.type for parameter in model.parameters()}
    assert places == {"cpu", DEVICE.type}, places
    assert any(getattr(part, "comfy_cast_weights", False) for part in model.modules())
    before = {key: value.to("cpu", copy=True) for key, value in model.state_dict().items()}
    with torch.inference_mode(), replaced(mm, "load_models_gpu", lambda *_args, **_more: None):
        decoded, encoded = vae.decode(LATENT), vae.encode(IMAGE)
    assert {parameter.device.type for parameter in model.parameters()} == places
    assert relative(decoded, DECODED) <= 1e-5, relative(decoded, DECODED)
    assert relative(encoded, ENCODED) <= 1e-5, relative(encoded, ENCODED)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key].cpu()) for key in before)
    vae.patcher.detach()
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def case_the_report_says_how_the_work_is_cut() -> None:
    size = VAE.patcher.model_size()
    for how, name, words in (
        (exact(), "exact vae tiling", "tiles of at most 256 pixels"),
        (exact(), "exact vae tiling", "maps in host memory"),
        (VaePlan(balanced(), False), "exact vae tiling", "half of the whole image's memory"),
        (VaePlan(balanced(), False, 2 * size), "exact vae tiling", "as far as the budget"),
        (plan(vae_tile_size=128), "vae tiling", "blended tiles of 128 pixels, 25% shared"),
    ):
        strategy, detail = described(tiling(VAE, how))
        assert strategy == name and words in detail, (strategy, detail)
    assert described(tiling(VAE, VaePlan(None, False))) is None


def case_each_mode_is_kept_to() -> None:
    for mode, cut in (("blended", 1), ("exact", 0), ("auto", 0)):
        vae, asked = spied(VaePlan(balanced(vae_tile_mode=mode), False))
        with torch.inference_mode():
            vae.decode(LATENT)
        assert len(asked) == cut, mode

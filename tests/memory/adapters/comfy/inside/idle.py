"""Cases, on the simulated accelerator: text encoder and VAE off the device when idle."""

from __future__ import annotations

import weakref

import comfy.model_management as mm
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from lowtide.memory import backend
from lowtide.memory.adapters.comfy import models
from lowtide.memory.adapters.comfy.clip import LeavingClip, leaving
from lowtide.memory.adapters.comfy.limits import streaming_bytes
from lowtide.memory.adapters.comfy.patchers import with_residency
from lowtide.memory.adapters.comfy.residency import Residency
from lowtide.memory.adapters.comfy.vae import VaePlan, tiling
from small import DEVICE, patcher, run, unload
from vaes import IMAGE, LATENT, balanced, make, small

assert DEVICE.type == "npu", DEVICE
CONFIG = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 4}
CONFIG |= {"intermediate_size": 256, "projection_dim": 128}


def text_encoder() -> comfy.sd.CLIP:
    torch.manual_seed(0)
    target = comfy.supported_models_base.ClipTarget(
        comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel
    )
    clip = comfy.sd.CLIP(target, model_options={"clip_l_model_config": CONFIG})
    for name, parameter in clip.cond_stage_model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
        elif parameter.dim() == 1:
            torch.nn.init.constant_(parameter, float(name.endswith("weight")))
    return clip


def held() -> int:
    return int(backend.allocated(backend.device_of(DEVICE)) or 0)


def encode(clip: comfy.sd.CLIP, text: str = "a cat") -> torch.Tensor:
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0].cpu()


CLIP = text_encoder()
EXPECTED = encode(CLIP)
assert EXPECTED.std() > 0
unload()


def clean() -> None:
    unload()
    mm.soft_empty_cache()


def case_the_core_keeps_an_encoder_and_ours_leaves() -> None:
    clean()
    start = held()
    encode(CLIP)
    assert held() - start >= CLIP.patcher.model_size()
    clean()
    assert torch.equal(encode(leaving(CLIP)), EXPECTED)
    assert held() == start
    assert not any(m.name == "SD1ClipModel" for m in models.loaded_models())


def case_every_way_to_encode_leaves() -> None:
    clean()
    clip = leaving(CLIP)
    tokens = clip.tokenize("a cat")
    start = held()
    for how in ("encode_from_tokens", "encode_from_tokens_scheduled"):
        with torch.inference_mode():
            getattr(clip, how)(tokens)
        assert held() == start, how
    with torch.inference_mode():
        clip.encode("a cat")
    assert held() == start


def case_clones_of_the_clone_leave_too() -> None:
    clean()
    start = held()
    clip = leaving(CLIP).clone().clone()
    clip.clip_layer(-1)
    encode(clip)
    assert isinstance(clip, LeavingClip)
    assert type(leaving(clip)) is type(clip)
    assert held() == start


def case_the_original_encoder_stays_as_it_is() -> None:
    kind = type(CLIP)
    clip = leaving(CLIP)
    encode(clip)
    assert type(CLIP) is kind
    assert isinstance(clip, kind)
    assert torch.equal(encode(CLIP), EXPECTED)
    clean()


def case_a_lora_on_the_encoder_is_kept_both_ways() -> None:
    clean()
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    delta = torch.randn(256, 128, generator=torch.Generator().manual_seed(3))
    with_lora = CLIP.clone()
    assert with_lora.add_patches({key: ("diff", (delta,))}, 1.0) == [key]
    changed = encode(with_lora)
    assert (changed - EXPECTED).abs().max() > 0.01
    clean()
    before = leaving(with_lora)
    after = leaving(CLIP)
    after.add_patches({key: ("diff", (delta,))}, 1.0)
    for clip in (before, after):
        for cap in (None, 0, clip.patcher.model_size() // 4):
            capped = clip.clone()
            if cap is not None:
                capped.patcher = with_residency(clip.patcher, Residency(cap=cap))
            for _ in range(2):
                assert (encode(capped) - changed).abs().max() < 1e-3, cap
    clean()
    assert torch.equal(encode(CLIP), EXPECTED)
    clean()


def case_an_encoder_that_fails_leaves_too() -> None:
    clean()
    start = held()
    clip = leaving(CLIP)
    try:
        with torch.inference_mode():
            clip.encode_from_tokens({"l": [[("no token", 1.0)]]})
    except AttributeError:
        pass
    else:
        raise AssertionError("it encoded nonsense")
    assert held() == start


def case_a_vae_leaves() -> None:
    clean()
    vae = make()
    start = held()
    with torch.inference_mode():
        vae.decode(LATENT)
    assert held() - start >= vae.model_size() if hasattr(vae, "model_size") else held() > start
    clean()
    twin = tiling(vae, VaePlan(balanced(), True))
    for work, value in (("decode", LATENT), ("encode", IMAGE)):
        with torch.inference_mode():
            getattr(twin, work)(value)
        assert held() == start, work
    with torch.inference_mode():
        twin.decode_tiled(LATENT, tile_x=16, tile_y=16, overlap=4)
        assert held() == start
        twin.encode_tiled(IMAGE, tile_x=128, tile_y=128, overlap=32)
    assert held() == start


def case_a_vae_that_runs_out_of_memory_leaves_too() -> None:
    from lowtide_sim import current

    clean()
    twin = tiling(make(), VaePlan(balanced(), True))
    start = held()
    current().fail_allocation(60)
    try:
        with torch.inference_mode():
            twin.decode(LATENT)
    except RuntimeError:
        pass  # out of memory, or what the core's fallback to tiles meets on a half-loaded VAE
    finally:
        current().clear_fault()
    assert held() == start


def case_tiles_and_leaving_lower_the_peak() -> None:
    from lowtide_sim import current

    def peak(vae) -> int:
        clean()
        current().reset_peaks()
        start = held()
        with torch.inference_mode():
            vae.decode(LATENT)
        return current().peak_allocated - start

    vae = make()
    whole = peak(vae)
    tiled = peak(tiling(vae, VaePlan(balanced(), True)))
    less = peak(tiling(vae, VaePlan(small(), True)))
    assert less < tiled < 0.7 * whole, (less, tiled, whole)
    clean()


def case_others_make_room_under_a_budget() -> None:
    clean()
    neighbour = patcher()
    run(neighbour)
    assert neighbour.loaded_size() > 0
    clip = leaving(CLIP)
    size = clip.patcher.model_size()
    clip.patcher = with_residency(
        clip.patcher, Residency(budget=size, streaming=streaming_bytes(clip.patcher))
    )
    encode(clip)
    assert neighbour.loaded_size() == 0
    run(neighbour)
    vae = make()
    with torch.inference_mode():
        tiling(vae, VaePlan(balanced(), True, vae.patcher.model_size())).decode(LATENT)
    assert neighbour.loaded_size() == 0
    run(neighbour)
    with torch.inference_mode():
        tiling(vae, VaePlan(balanced(), True, 1 << 40)).decode(LATENT)
    assert neighbour.loaded_size() > 0, "there was room for both"
    clean()


def case_unloading_all_does_not_need_the_cores_list_of_devices() -> None:
    clean()
    start = held()
    one = patcher()
    run(one)
    assert held() > start
    listed = getattr(mm, "get_all_torch_devices", None)
    if listed is not None:
        mm.get_all_torch_devices = lambda *_, **__: []
    try:
        models.unload_all()
    finally:
        if listed is not None:
            mm.get_all_torch_devices = listed
    assert held() == start
    assert mm.current_loaded_models == []


def case_leaving_spares_the_others() -> None:
    clean()
    one, other = patcher(), patcher()
    run(one)
    run(other)
    models.leave_device(one.clone())
    assert one.loaded_size() == 0
    assert other.loaded_size() > 0
    models.leave_device(one)
    assert [m.on_device for m in models.loaded_models()] == [other.model_size()]
    clean()


def case_nothing_keeps_a_used_encoder_alive() -> None:
    import gc

    gc.collect()
    gc.disable()
    try:
        clip = text_encoder()
        clone = leaving(clip)
        encode(clone)
        model = weakref.ref(clip.cond_stage_model)
        del clip, clone
        clean()
        assert model() is None, "the encoder is in a reference cycle"
    finally:
        gc.enable()


def case_a_budget_narrows_what_batching_sees() -> None:
    one = patcher()
    budget = held() + 12345
    clone = with_residency(one, Residency(budget=budget))
    if hasattr(one, "get_free_memory"):
        assert one.get_free_memory(DEVICE) > 12345
        assert clone.get_free_memory(DEVICE) == 12345

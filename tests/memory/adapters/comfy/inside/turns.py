"""Cases, on the simulated accelerator: text encoder and VAE in their turn under a budget."""

from __future__ import annotations

import torch
from idle import CLIP, EXPECTED, clean, encode, held
from lowtide.memory.adapters.comfy import apply, budget, measured
from lowtide.memory.adapters.comfy.limits import least_bytes
from lowtide.memory.errors import BudgetError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide_sim import current
from tiles import DECODED, ENCODED, IMAGE, LATENT, VAE

ENCODER = int(CLIP.patcher.model_size())
AUTOENCODER = int(VAE.patcher.model_size())


def optimized(kind: str, one: object, budget_bytes: int) -> object:
    config = MemoryOptimizationConfig.from_level("none", budget_bytes=budget_bytes)
    share = apply.divide(config, **{"model": None, "clip": None, "vae": None, kind: one})
    return getattr(apply, f"to_{kind}")(config, share, one, [])


def peak_of(work, *args) -> tuple[int, torch.Tensor]:
    current().reset_peaks()
    with torch.inference_mode():
        found = work(*args)
    return current().peak_allocated, found


def smallest(kind: str, one: object, work) -> int:
    """The budget that a refusal names; the least one given at all where nothing is refused."""
    allowed = least_bytes(getattr(one, "patcher", one)) + 1
    try:
        peak_of(work, optimized(kind, one, allowed))
    except BudgetError as error:
        found = str(error).split("at least ")[1].split(" GB")[0]
    else:
        return allowed
    finally:
        clean()
        assert held() == 0
    return int(float(found) * (1 << 30))


def case_an_encoder_is_streamed_in_its_first_turn_and_whole_where_that_is_known_to_fit() -> None:
    clean()
    measured.forget_all()
    clip = optimized("clip", CLIP, ENCODER * 3)
    streamed, found = peak_of(encode, clip)
    assert torch.equal(found, EXPECTED)
    whole, found = peak_of(encode, clip)
    assert torch.equal(found, EXPECTED)
    assert streamed < whole <= ENCODER * 3, (streamed, whole)
    assert held() == 0


def case_an_encoder_keeps_the_budget_its_refusal_names() -> None:
    clean()
    measured.forget_all()
    allowed = smallest("clip", CLIP, encode)
    clip = optimized("clip", CLIP, allowed)
    for _ in range(2):
        peak, found = peak_of(encode, clip)
        assert peak <= allowed
        assert torch.equal(found, EXPECTED)
        assert held() == 0
    clean()


def case_a_vae_is_streamed_where_its_weights_and_its_work_do_not_fit_together() -> None:
    for name, value, expected in (("decode", LATENT, DECODED), ("encode", IMAGE, ENCODED)):
        clean()
        measured.forget_all()
        whole, _ = peak_of(getattr(VAE, name), value)
        clean()
        allowed = smallest("vae", VAE, lambda vae, n=name, v=value: getattr(vae, n)(v))
        assert allowed < whole, (name, allowed, whole)
        vae = optimized("vae", VAE, allowed)
        for _ in range(2):
            peak, found = peak_of(getattr(vae, name), value)
            assert peak <= allowed, (name, peak, allowed)
            assert torch.equal(found, expected), name
            assert held() == 0
    clean()


def case_a_vae_with_room_is_loaded_whole() -> None:
    clean()
    measured.forget_all()
    vae = optimized("vae", VAE, 1 << 40)
    seen = []
    leave = budget.Measured.__exit__
    budget.Measured.__exit__ = lambda self, *_: (leave(self), seen.append(self.resident))[0]
    try:
        with torch.inference_mode():
            found = vae.decode(LATENT)
    finally:
        budget.Measured.__exit__ = leave
    assert torch.equal(found, DECODED)
    assert seen == [AUTOENCODER]
    assert held() == 0


def case_a_vae_that_cannot_be_streamed_is_refused_or_loaded_whole() -> None:
    clean()
    VAE.first_stage_model.odd = torch.nn.Linear(4, 4)
    try:
        for allowed, refused in ((AUTOENCODER // 2, True), (1 << 40, False)):
            try:
                vae = optimized("vae", VAE, allowed)
            except BudgetError as error:
                assert refused, str(error)
                assert "cannot be streamed" in str(error)
            else:
                assert not refused
                assert not isinstance(vae.patcher, budget.Budgeted)
    finally:
        del VAE.first_stage_model.odd
    clean()


def case_the_originals_work_as_ever_afterwards() -> None:
    clean()
    for kind, one in (("clip", CLIP), ("vae", VAE)):
        optimized(kind, one, 1 << 40)
    assert torch.equal(encode(CLIP), EXPECTED)
    with torch.inference_mode():
        assert torch.equal(VAE.decode(LATENT), DECODED)
    clean()

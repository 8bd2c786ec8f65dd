"""Cases, on the simulated accelerator: another model has its turn in the middle of a sampling."""

from __future__ import annotations

import comfy.sampler_helpers
import comfy.samplers
import torch
from budgets import EXPECTED, MODEL, SIZE, budgeted, clean
from diffusion import cond, make, sample
from lowtide.memory.adapters.comfy import models
from lowtide_sim import current


class Guider(comfy.samplers.CFGGuider):
    """As newer cores' Dual Model Guider: the negative prompt goes through a model of its own."""

    def __init__(self, model, other) -> None:
        super().__init__(model)
        self.other = other

    def outer_sample(self, noise, *args, **kwargs):
        negative = {"negative": [dict(one) for one in self.conds["negative"]]}
        self.other_model, found, _ = comfy.sampler_helpers.prepare_sampling(
            self.other, noise.shape, negative, self.other.model_options
        )
        self.raw = found["negative"]
        self.other.pre_run()
        try:
            return super().outer_sample(noise, *args, **kwargs)
        finally:
            self.other.cleanup()

    def inner_sample(self, noise, latent_image, device, *args, **kwargs):
        process = comfy.samplers.process_conds
        conds = {"negative": self.raw}
        self.negative = process(self.other_model, noise, conds, device, latent_image, None, 0)
        return super().inner_sample(noise, latent_image, device, *args, **kwargs)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        predict = comfy.samplers.calc_cond_batch
        with_it = [self.conds["positive"]], x, timestep, model_options
        without = [self.negative["negative"]], x, timestep, model_options
        found = predict(self.inner_model, *with_it)[0]
        against = predict(self.other_model, *without)[0]
        return against + (found - against) * self.cfg


def sampled(model, other) -> torch.Tensor:
    guider = Guider(model, other)
    guider.set_conds(cond(1), cond(2))
    guider.set_cfg(7.0)
    latent = torch.zeros(1, 4, 16, 16)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 3)
    euler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        return guider.sample(noise, latent, euler, sigmas, seed=0).cpu()


def case_two_models_of_one_sampling_share_a_budget() -> None:
    clean()
    other = make()
    expected = sampled(MODEL, other)
    clean()
    for budget in (SIZE // 2, SIZE, SIZE * 3):
        second = budgeted(other, budget)
        current().reset_peaks()
        assert torch.equal(sampled(budgeted(MODEL, budget), second), expected), budget / SIZE
        assert current().peak_allocated <= budget, current().peak_allocated / budget
        clean()


def case_a_model_that_is_sampled_is_streamed_where_it_has_to_give_way() -> None:
    clean()
    other, seen = make(), []

    def give_way(apply_model, given):
        seen.append(int(MODEL.loaded_size()))
        models.unload_others(other)
        return apply_model(given["input"], given["timestep"], **given["c"])

    model = MODEL.clone()
    model.set_model_unet_function_wrapper(give_way)
    assert torch.equal(sample(model), EXPECTED[0])
    assert seen[0] > SIZE * 0.9 and seen[-1] < SIZE // 100, seen
    clean()

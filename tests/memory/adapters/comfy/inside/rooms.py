"""Cases: how much room a cap and a budget leave for weights, beside what is computed."""

from __future__ import annotations

import comfy.model_management as mm
from lowtide.memory.adapters.comfy import limits, sampling
from lowtide.memory.adapters.comfy.budget import Turn
from lowtide.memory.adapters.comfy.measured import Need, forget_all, remember
from lowtide.memory.adapters.comfy.patchers import with_residency
from lowtide.memory.adapters.comfy.residency import Residency
from residency import BASE, PLAIN, SIZE, WITH_LORA, capped, clean
from small import (
    KEYS,
    LAYERS,
    Model,
    close,
    run,
    unload,
)


def case_streaming_counts_the_largest_layer() -> None:
    weight = BASE.model.diffusion_model.blocks[0].weight
    bias = BASE.model.diffusion_model.blocks[0].bias
    streams = 1 + int(getattr(mm, "NUM_STREAMS", 0) or 0)
    assert limits.streaming_bytes(BASE) == streams * (weight.nbytes + bias.nbytes)
    more = limits.streaming_bytes(WITH_LORA) - limits.streaming_bytes(BASE)
    assert more == streams * 12 * weight.numel(), KEYS[0]


def case_a_budget_leaves_room_for_activations() -> None:
    residency = Residency(budget=1000, streaming=100, activations=300)
    assert residency.weights(None) == 600
    assert residency.weights(850) == 50
    assert residency.weights(5000) == 0
    assert Residency(cap=70, budget=1000).weights(0) == 70
    assert Residency().weights(5) is None


def case_sampling_begins_with_what_the_estimate_leaves() -> None:
    from comfy.sampler_helpers import prepare_sampling

    streaming = limits.streaming_bytes(BASE)
    clone = with_residency(BASE, Residency(budget=SIZE, streaming=streaming))
    sampling.watch(clone)
    clone = clone.clone()
    options = {"transformer_options": {"wrappers": clone.wrappers}}
    for estimate, room in ((SIZE // 4, SIZE - streaming - SIZE * 3 // 8), (SIZE, 0)):
        Model.activations = estimate
        try:
            prepare_sampling(clone, [1, 4, 8, 8], {"positive": [{}]}, options)
            assert clone.lowtide_room == room
            assert room - SIZE // LAYERS * 1.1 < clone.loaded_size() <= room
            assert close(run(clone), PLAIN) == 0
        finally:
            Model.activations = 0
        clean()


def case_a_turn_that_was_measured_goes_by_that_and_not_by_the_estimate() -> None:
    clone = with_residency(BASE, Residency(budget=2 * SIZE))
    remember(clone.model, "asked", Need(SIZE + SIZE // 2, SIZE))
    try:
        for question, room in (("asked", 0), ("another", SIZE)):
            turn = Turn(clone, question, "vae", "a smaller image", estimate=SIZE // 8)
            turn.begin()
            assert clone.lowtide_room >= room and bool(clone.lowtide_room) == bool(room)
            turn.end(failed=True)
    finally:
        forget_all()


def case_a_large_layer_does_not_starve_the_others() -> None:
    """Newer cores keep room to stream the largest layer: the cap must mean the same there."""
    import comfy.model_patcher as mp
    import torch
    from small import CPU, DEVICE, WIDTH

    one = mp.ModelPatcher(Model(), DEVICE, CPU)
    ops = type(one.model.diffusion_model.blocks[0])
    one.model.large = ops(WIDTH, WIDTH * 6, dtype=torch.float32)
    torch.nn.init.zeros_(one.model.large.weight)
    torch.nn.init.zeros_(one.model.large.bias)
    for parameter in one.model.parameters():
        parameter.requires_grad_(False)
    large, small = one.model.large.weight.nbytes, SIZE // LAYERS
    for cap in (small * 2, small * 5):
        clone = capped(one, cap)
        assert close(run(clone), PLAIN) == 0
        assert cap - small * 1.1 < clone.loaded_size() <= cap, (cap, clone.loaded_size(), large)
        unload()

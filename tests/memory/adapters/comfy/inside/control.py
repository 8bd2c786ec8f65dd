"""Cases, on the simulated accelerator: a ControlNet beside its model, under cap and budget."""

from __future__ import annotations

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management as mm
import comfy.ops
import torch
from diffusion import SHAPE, cond, make, sample, unload
from lowtide.memory import backend
from lowtide.memory.adapters.comfy import apply, measured
from lowtide.memory.errors import TargetError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide_sim import current


def control_net() -> comfy.controlnet.ControlNet:
    shape = {key: value for key, value in SHAPE.items() if key != "out_channels"}
    shape.pop("transformer_depth_output")
    net = comfy.cldm.cldm.ControlNet(
        **shape, hint_channels=3, dtype=torch.float16, operations=comfy.ops.disable_weight_init
    )
    generator = torch.Generator().manual_seed(5)
    for weight in net.parameters():
        weight.requires_grad_(False)
        spread = weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.1
        weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
    found = comfy.controlnet.ControlNet(net, load_device=mm.get_torch_device())
    return found


MODEL, CONTROL = make(), control_net()
SIZES = int(MODEL.model_size()), int(CONTROL.control_model_wrapped.model_size())
DEVICE = backend.device_of(mm.get_torch_device())
HINT = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(6))


def conds(control) -> dict[str, object]:
    found = {}
    for seed, name in ((1, "positive"), (2, "negative")):
        used = control.copy().set_cond_hint(HINT, 0.8, (0.0, 1.0))
        ((tensor, options),) = cond(seed)
        extra = {"control": used, "control_apply_to_uncond": False}
        found[name] = [[tensor, {**options, **extra}]]
    return found


def optimized(level: str = "none", **more):
    config = MemoryOptimizationConfig.from_level(level, **more)
    share = apply.divide(config, model=MODEL, clip=None, vae=None, control_net=CONTROL)
    model = apply.to_model(config, share, MODEL, [])
    return model, apply.to_control_net(config, share, CONTROL, [])


EXPECTED = sample(MODEL, **conds(CONTROL))
unload()
assert not torch.equal(EXPECTED, sample(MODEL))
unload()


def held() -> int:
    return int(backend.allocated(DEVICE) or 0)


def clean() -> None:
    unload()
    measured.forget_all()


def case_a_budget_holds_model_and_control_net_together() -> None:
    for percent in (60, 100):
        clean()
        budget = sum(SIZES) * percent // 100
        model, control = optimized(budget_bytes=budget)
        for _ in range(2):
            current().reset_peaks()
            found = sample(model, **conds(control))
            assert current().peak_allocated <= budget, (percent, current().peak_allocated / budget)
            assert torch.equal(found, EXPECTED), percent
            assert held() == 0
    clean()


def case_levels_cap_the_control_net_and_it_leaves() -> None:
    for level, share in (("aggressive", 0.25), ("ultra", 0.0)):
        clean()
        model, control = optimized(level, fp8_storage=False)
        seen = []
        forward = type(CONTROL.control_model).forward

        def note(self, *args, forward=forward, seen=seen, control=control, **kwargs):
            seen.append(int(control.control_model_wrapped.loaded_size()))
            return forward(self, *args, **kwargs)

        type(CONTROL.control_model).forward = note
        try:
            assert torch.equal(sample(model, **conds(control)), EXPECTED), level
        finally:
            type(CONTROL.control_model).forward = forward
        assert seen and max(seen) <= SIZES[1] * share, (level, seen)
        assert held() == 0, level
    clean()


def case_without_its_model_the_report_says_what_it_leaves_with() -> None:
    config = MemoryOptimizationConfig.from_level("ultra", fp8_storage=False)
    said = {}
    for model in (MODEL, None):
        entries: list[object] = []
        share = apply.divide(config, model=model, clip=None, vae=None, control_net=CONTROL)
        apply.to_control_net(config, share, CONTROL, entries)
        (said[model],) = (one.detail for one in entries if one.strategy == "leave when idle")
    assert said[MODEL] == "off the device after sampling"
    assert "MODEL of Optimize Pipeline" in said[None]


def case_the_original_and_its_chain_stay_as_they_are() -> None:
    kind = type(CONTROL.control_model_wrapped)
    first = CONTROL.copy()
    CONTROL.set_previous_controlnet(first)
    try:
        _, control = optimized("ultra")
        assert control is not CONTROL
        assert control.previous_controlnet is first
        assert control.copy().control_model_wrapped is control.control_model_wrapped
    finally:
        CONTROL.set_previous_controlnet(None)
    assert type(CONTROL.control_model_wrapped) is kind
    assert torch.equal(sample(MODEL, **conds(CONTROL)), EXPECTED)
    clean()


def case_kinds_that_move_their_weights_themselves_are_said() -> None:
    adapter = comfy.controlnet.T2IAdapter(torch.nn.Linear(1, 1), 3, 8, "nearest-exact")
    config = MemoryOptimizationConfig.from_level("ultra")
    entries: list[object] = []
    share = apply.divide(config, model=None, clip=None, vae=None, control_net=adapter)
    assert apply.to_control_net(config, share, adapter, entries) is adapter
    assert "moves its weights itself" in entries[0].reason
    try:
        apply.divide(config, model=None, clip=None, vae=None, control_net=MODEL)
    except TargetError as error:
        assert "plug in a CONTROL_NET" in str(error)
    else:
        raise AssertionError("a MODEL was taken for a ControlNet")


def case_a_rescue_streams_the_control_nets_of_a_conditioning() -> None:
    from lowtide.memory.adapters.comfy.lessened import inputs_under
    from lowtide.memory.rescue import ladder

    given = conds(CONTROL)
    inputs = {"model": [MODEL], **{name: [value] for name, value in given.items()}}
    for rung in ladder():
        found = inputs_under(rung, inputs, lambda: "off")
        if rung.name == "free":
            assert found is inputs
        elif rung.name == "tile":
            assert found is None
        else:
            pairs = {name: found[name][0] for name in given}
            used = [pairs[name][0][1]["control"] for name in pairs]
            assert used[0].control_model_wrapped is used[1].control_model_wrapped
            assert used[0].control_model_wrapped is not CONTROL.control_model_wrapped
            assert given["positive"][0][1]["control"].control_model_wrapped is (
                CONTROL.control_model_wrapped
            )
            image = sample(found["model"][0], **pairs)
            off = (image - EXPECTED).norm() / EXPECTED.norm()  # slices of attention round
            assert off <= (0 if rung.name == "stream" else 1e-2), (rung.name, off)
            if rung.name == "stream everything":
                assert used[0].control_model_wrapped.loaded_size() == 0
            unload()

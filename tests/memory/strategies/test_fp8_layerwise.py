from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.adapters import diffusers_casting
from lowtide.memory.adapters.diffusers import CASTING_HOOK, hook_of
from lowtide.memory.adapters.synthetic import lora_state_dict, weight_bytes
from lowtide.memory.strategies import group_offload, placement
from lowtide.memory.strategies.base import Applied, Outcome, Skipped
from lowtide.memory.strategies.fp8_layerwise import Fp8Layerwise, apply
from lowtide.memory.strategies.group_offload import GroupOffload
from lowtide.memory.units import format_bytes
from lowtide.tests.memory.strategies.pipes import (
    Plain,
    same_values,
    structure,
    tiny,
    undo,
    values,
)

FP8 = torch.float8_e4m3fn
LARGEST, MEAN = 0.2, 0.03
"""Difference to the unoptimised image, 0..1, allowed to a denoiser in FP8."""


def types(module: torch.nn.Module) -> dict[str, torch.dtype]:
    return {name: p.dtype for name, p in module.named_parameters()}


def assert_close(found: torch.Tensor, expected: torch.Tensor, times: float = 1) -> None:
    difference = (found - expected).abs()
    assert 0 < difference.max() < LARGEST * times
    assert difference.mean() < MEAN * times


@pytest.mark.parametrize(
    ("name", "dtype", "part"),
    [
        ("tiny-sd15", "float32", "unet"),
        ("tiny-sdxl", "float16", "unet"),
        ("tiny-flux", "float16", "transformer"),
    ],
)
def test_matrices_are_kept_in_fp8_and_the_image_is_close(
    accelerator: Any, name: str, dtype: str, part: str
) -> None:
    plain = Plain(accelerator, name, dtype)
    denoiser = getattr(plain.pipe, part)
    before, width = weight_bytes(denoiser), denoiser.dtype.itemsize
    outcome = apply(Fp8Layerwise(), denoiser, part)
    cast = [p for p in denoiser.parameters() if p.dtype == FP8]
    saved = before - weight_bytes(denoiser)
    assert saved == sum(p.numel() for p in cast) * (width - 1)
    assert saved > 0.7 * before * (width - 1) / width
    assert isinstance(outcome, Applied)
    assert f"{format_bytes(saved)} less" in outcome.detail
    placed = placement.apply(placement.Placement(accelerator.device), plain.pipe)
    assert accelerator.allocated < plain.weights - saved + (1 << 20)
    run = plain.measured()
    assert run.peak < plain.run.peak - 0.9 * saved
    assert_close(run.image, plain.run.image)
    assert all(p.dtype == FP8 for p in cast)
    undo([outcome, *placed])
    plain.assert_restored()


@pytest.mark.parametrize(("name", "part"), [("tiny-sd15", "unet"), ("tiny-flux", "transformer")])
def test_norms_embeddings_and_biases_are_left_alone(name: str, part: str) -> None:
    denoiser = getattr(tiny(name, "float32"), part)
    before = values_of(denoiser)
    apply(Fp8Layerwise(), denoiser, part)
    kinds = {name: type(module).__name__ for name, module in denoiser.named_modules()}
    for path, dtype in types(denoiser).items():
        owner, _, leaf = path.rpartition(".")
        delicate = "norm" in path or owner in ("proj_in", "proj_out") or kinds[owner] == "Embedding"
        if leaf == "bias" or delicate:
            assert dtype == torch.float32, path
            assert torch.equal(denoiser.get_parameter(path), before[path]), path
        elif "attn" in path or "conv" in path:
            assert dtype == FP8, path


def values_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


class Half(torch.nn.Sequential):
    dtype = torch.float16


class Watched(torch.nn.Linear):
    """Remembers the type of its weight while it computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.weight.dtype
        return super().forward(x)


def test_a_layer_is_precise_for_its_forward_only(accelerator: Any) -> None:
    model = Half(Watched(64, 64, bias=False).half()).to(accelerator.device)
    weight = model[0].weight
    rounded = weight.detach().to(FP8).half()
    outcome = apply(Fp8Layerwise(), model, "unet")
    for _ in range(2):
        assert weight.dtype == FP8
        with torch.no_grad():
            unit = torch.eye(64, dtype=torch.float16, device=accelerator.device)
            assert torch.equal(model(unit).cpu(), rounded.T.cpu())
        assert model[0].seen == torch.float16
    undo([outcome])
    assert weight.dtype == torch.float16


def test_t5_keeps_its_embeddings_norms_and_output_layers(accelerator: Any) -> None:
    plain = Plain(accelerator, "tiny-flux", "float16", size=64)
    encoder = plain.pipe.text_encoder_2
    outcome = apply(Fp8Layerwise(), encoder, "text_encoder_2", encoder=True)
    found = types(encoder)
    precise = {name for name, dtype in found.items() if dtype == torch.float16}
    assert precise == {
        n
        for n in found
        if n.endswith(".wo.weight")
        or "norm" in n
        or "embed" in n
        or n.startswith("shared")
        or "relative_attention_bias" in n
    }
    assert sum(".wo." in name for name in precise) == 4
    assert sum(dtype == FP8 for dtype in found.values()) == 4 * (4 + 2)
    placed = placement.apply(placement.Placement(accelerator.device), plain.pipe)
    assert_close(plain.measured().image, plain.run.image, 2)
    undo([outcome, *placed])
    plain.assert_restored()


@pytest.mark.parametrize(("largest", "expected"), [(448.0, FP8), (449.0, torch.float32)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_weight_fp8_cannot_hold_is_skipped(
    largest: float, expected: torch.dtype, sign: int
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[1, 2] = sign * largest
    apply(Fp8Layerwise(), model, "unet")
    assert model[0].weight.dtype == expected
    assert model[1].weight.dtype == FP8
    assert model(torch.ones(1, 4)).isfinite().all()


def test_a_layer_tied_to_an_embedding_is_skipped() -> None:
    model = torch.nn.ModuleDict({"table": torch.nn.Embedding(8, 4), "head": torch.nn.Linear(4, 8)})
    model["head"].weight = model["table"].weight
    outcome = apply(Fp8Layerwise(), model, "text_encoder", encoder=True)
    assert outcome == Skipped(
        "fp8 storage", "text_encoder", "it has no layer whose weights may be stored in FP8"
    )
    assert model["head"].weight.dtype == torch.float32


def test_what_is_small_already_is_skipped() -> None:
    unet = tiny().unet
    first = apply(Fp8Layerwise(), unet, "unet")
    second = apply(Fp8Layerwise(), unet, "unet")
    assert isinstance(second, Skipped) and "already stored in a smaller type" in second.reason
    undo([first])
    unet.is_quantized = True
    third = apply(Fp8Layerwise(), unet, "unet")
    assert isinstance(third, Skipped) and "quantized" in third.reason


def test_a_lora_stays_precise(accelerator: Any) -> None:
    plain = Plain(accelerator, dtype="float16")
    plain.pipe.load_lora_weights(lora_state_dict(plain.pipe))
    before, shape = values(plain.pipe), structure(plain.pipe)
    placed = placement.apply(placement.Placement(accelerator.device), plain.pipe)
    expected = plain.measured().image
    undo(placed)
    assert (expected - plain.run.image).abs().mean() > 4 * MEAN
    outcomes: list[Outcome] = [apply(Fp8Layerwise(), plain.pipe.unet, "unet")]
    found = types(plain.pipe.unet)
    adapters = {n: dtype for n, dtype in found.items() if "lora_" in n}
    assert set(adapters.values()) == {torch.float16}
    assert {d for n, d in found.items() if n.endswith("to_q.base_layer.weight")} == {FP8}
    outcomes += placement.apply(placement.Placement(accelerator.device), plain.pipe)
    assert_close(plain.measured().image, expected, 1.5)
    undo(outcomes)
    assert same_values(values(plain.pipe), before)
    assert structure(plain.pipe) == shape


def test_another_compute_type_is_the_components_own_affair(accelerator: Any) -> None:
    plain = Plain(accelerator, dtype="float16", size=64)
    unet = plain.pipe.unet
    outcomes: list[Outcome] = [apply(Fp8Layerwise(compute_dtype=torch.float32), unet, "unet")]
    assert set(types(unet).values()) == {FP8, torch.float32}
    inside: set[torch.dtype] = set()
    unet.conv_in.register_forward_hook(lambda _, __, out: inside.add(out.dtype))
    outside: set[torch.dtype] = set()
    unet.register_forward_hook(lambda _, __, out: outside.add(out[0].dtype))
    outcomes += placement.apply(placement.Placement(accelerator.device), plain.pipe)
    assert_close(plain.measured().image, plain.run.image)
    assert (inside, outside) == ({torch.float32}, {torch.float16})
    unet._forward_hooks.clear()
    unet.conv_in._forward_hooks.clear()
    undo(outcomes)
    plain.assert_restored()


@pytest.mark.parametrize("stream", [False, True])
def test_fewer_bytes_move_under_group_offload(accelerator: Any, stream: bool) -> None:
    plain = Plain(accelerator, dtype="float16")
    config = GroupOffload(accelerator.device, use_stream=stream)
    outcomes = group_offload.apply(config, plain.pipe)
    full = [plain.measured() for _ in range(2)][-1]
    undo(outcomes)
    outcomes = [apply(Fp8Layerwise(), plain.pipe.unet, "unet")]
    saved = plain.weights - sum(t.nbytes for t in values(plain.pipe).values())
    outcomes += group_offload.apply(config, plain.pipe)
    runs = [plain.measured() for _ in range(2)]
    assert all(full.h2d - run.h2d == pytest.approx(2 * saved, rel=0.02) for run in runs)
    assert all(run.peak <= full.peak for run in runs)
    assert torch.equal(runs[0].image, runs[1].image)
    assert_close(runs[0].image, plain.run.image)
    undo(outcomes)
    plain.assert_restored()


def test_a_failure_half_way_undoes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny()
    before, shape = values(pipe), structure(pipe)
    calls: list[Any] = []
    cast = diffusers_casting.cast_layer

    def fails(layer: torch.nn.Module, *types: torch.dtype) -> None:
        calls.append(layer)
        if len(calls) == 20:
            raise RuntimeError("half way")
        cast(layer, *types)

    monkeypatch.setattr(diffusers_casting, "cast_layer", fails)
    with pytest.raises(RuntimeError, match="half way"):
        apply(Fp8Layerwise(), pipe.unet, "unet")
    assert all(hook_of(layer, CASTING_HOOK) is None for layer in calls)
    assert same_values(values(pipe), before)
    assert structure(pipe) == shape

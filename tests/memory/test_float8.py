"""The codec: what it loses, what it costs, and what comes back."""

from __future__ import annotations

import pytest
import torch
from lowtide.memory import float8
from lowtide.memory.float8 import CODES, CURVES, LAST, ROOT, decode, encode, relative_error
from lowtide.memory.planner.policy import DECODED

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def normal(
    rows: int = 256, columns: int = 1024, sigma: float = 0.02, seed: int = 0
) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * sigma


def tailed(freedom: float, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.distributions.StudentT(freedom).sample((256, 1024)) * 0.02


def places(codes: torch.Tensor) -> torch.Tensor:
    return codes.view(torch.uint8)


@pytest.mark.parametrize("sigma", [1e-4, 0.005, 0.01, 0.02, 0.03, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_weights_lose_less_than_a_quarter_of_what_a_cast_loses(
    sigma: float, dtype: torch.dtype
) -> None:
    weight = normal(sigma=sigma).to(dtype)
    stored = encode(weight)
    assert stored is not None
    assert stored.codes.dtype == CODES
    lost = relative_error(stored.decode(dtype), weight)
    assert 0.005 < lost < 0.0072
    assert lost < relative_error(weight.to(CODES), weight) / 3.5


@pytest.mark.parametrize(
    ("freedom", "most"), [(2.5, 0.0130), (3.0, 0.0130), (4.0, 0.0115), (8.0, 0.0085)]
)
def test_long_tails_get_the_curve_that_suits_them(freedom: float, most: float) -> None:
    weight = tailed(freedom)
    stored = encode(weight)
    assert stored is not None
    found = {curve: relative_error(encode(weight, curve).decode(), weight) for curve in CURVES}  # type: ignore[union-attr]
    assert relative_error(stored.decode(), weight) == pytest.approx(min(found.values()), rel=0.1)
    assert min(found.values()) < most


def test_the_curve_follows_the_distribution() -> None:
    assert float8.choose_curve(normal()) != ROOT
    assert float8.choose_curve(tailed(2.5)) == ROOT


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_encoding_again_gives_the_same_codes(curve: float, dtype: torch.dtype) -> None:
    first = encode(normal(), curve)
    assert first is not None
    again = encode(first.decode(dtype), curve)
    assert again is not None
    assert torch.equal(places(again.codes), places(first.codes))
    assert torch.equal(again.scale, first.scale)


@pytest.mark.parametrize("curve", CURVES)
def test_codes_keep_the_order_and_the_sign_of_weights(curve: float) -> None:
    line = torch.linspace(-0.03, 0.03, 20_001)[None]
    stored = encode(line, curve)
    assert stored is not None
    decoded = stored.decode()[0]
    assert (decoded.diff() >= 0).all()
    assert torch.equal(decoded, -decoded.flip(0))
    assert decoded[10_000] == 0
    assert decoded.unique().numel() == 2 * LAST + 1


def test_every_channel_has_its_own_scale() -> None:
    weight = normal(64, 512) * torch.logspace(-4, 2, 64)[:, None]
    stored = encode(weight)
    assert stored is not None
    decoded = stored.decode()
    for row in range(64):
        assert relative_error(decoded[row], weight[row]) < 0.008


@pytest.mark.parametrize("shape", [(8, 16), (8, 4, 3, 3), (8, 4, 5), (1, 1), (3, 0), (0, 3)])
def test_shapes_and_bytes(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    stored = encode(weight)
    assert stored is not None
    assert stored.codes.shape == weight.shape
    assert stored.scale.shape == (shape[0], *(1 for _ in shape[1:]))
    assert stored.nbytes == weight.numel() + 4 * shape[0]
    assert stored.decode(torch.float16).shape == weight.shape


def test_zeros_stay_zeros_and_tiny_channels_are_dropped() -> None:
    weight = normal(4, 64)
    weight[1] = 0
    weight[2] = 1e-38
    for curve in CURVES:
        stored = encode(weight, curve)
        assert stored is not None
        assert torch.isfinite(stored.decode()).all()
        assert (stored.decode()[1:3] == 0).all()


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weight = normal(8, 64)
    weight[5, 3] = value
    assert encode(weight) is None


def test_small_half_precision_weights_do_not_vanish() -> None:
    weight = normal(sigma=2e-5).half()
    stored = encode(weight)
    assert stored is not None
    assert relative_error(stored.decode(torch.float16), weight) < 0.01


def test_no_code_is_nan_and_a_cast_of_codes_loses_nothing() -> None:
    for curve in CURVES:
        stored = encode(normal(), curve)
        assert stored is not None
        for dtype in DTYPES:
            numbers = stored.codes.to(dtype)
            assert not numbers.isnan().any()
            assert torch.equal(places(numbers.to(CODES)), places(stored.codes))


def test_writing_under_a_given_scale_cuts_what_is_beyond_it() -> None:
    weight = normal(8, 64)
    for curve in CURVES:
        stored = encode(weight, curve)
        assert stored is not None
        float8.write(stored.codes, stored.scale, weight * 3, curve)
        decoded = stored.decode()
        assert (decoded.abs() <= stored.scale).all()
        inside = (weight * 3).abs() < stored.scale
        assert relative_error(decoded[inside], (weight * 3)[inside]) < 0.02


def test_parts_are_worked_on_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(100, 300)
    whole = encode(weight, CURVES[0])
    monkeypatch.setattr(float8, "_CHUNK", 1000)
    parts = encode(weight, CURVES[0])
    assert whole is not None
    assert parts is not None
    assert torch.equal(places(whole.codes), places(parts.codes))
    assert torch.equal(parts.decode(), decode(whole.codes, whole.scale, CURVES[0], torch.float32))
    assert float8.decode_bytes(weight.numel()) < weight.numel()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("input_blocks.0.0", False),
        ("input_blocks.10.0.in_layers.2", True),
        ("input_blocks.3.0.op", False),
        ("input_blocks.4.0.skip_connection", False),
        ("input_blocks.4.1.proj_in", False),
        ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", True),
        ("output_blocks.2.1.conv", False),
        ("middle_block.0.emb_layers.1", True),
        ("time_embed.0", False),
        ("label_emb.0.0", False),
        ("out.2", False),
        ("double_blocks.0.img_attn.qkv", True),
        ("single_blocks.3.linear2", True),
        ("img_in", False),
        ("final_layer.linear", False),
        ("joint_blocks.1.x_block.mlp.fc1", True),
        ("down_blocks.0.downsamplers.0.conv", False),
        ("single_transformer_blocks.0.proj_out", True),
        ("transformer_blocks.0.ff.net.0.proj", True),
        ("proj_out", False),
        ("context_embedder", False),
    ],
)
def test_delicate_layers_are_known_by_name(name: str, expected: bool) -> None:
    assert float8.in_a_block(name) is expected


def test_the_planner_knows_how_many_values_are_decoded_at_a_time():
    assert float8.decode_bytes(1 << 40) == 4 * DECODED + 4096
    assert float8.decode_bytes(10) == 4 * 10 + 4096

"""Attention in slices, without ComfyUI: exactness and the bound on the scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.adapters.comfy.sliced import (
    MOST_BYTES,
    Slices,
    as_core_function,
    attend,
    heads_at_once,
    slices_for,
)
from lowtide.memory.units import MIB
from torch.nn.functional import scaled_dot_product_attention as exact

IMAGES, HEADS, ROWS, KEYS, SIZE = 2, 6, 50, 77, 32


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(dtype: torch.dtype = torch.float32, kv_heads: int = HEADS) -> tuple[torch.Tensor, ...]:
    return (
        noise(IMAGES, HEADS, ROWS, SIZE, dtype=dtype, seed=1),
        noise(IMAGES, kv_heads, KEYS, SIZE, dtype=dtype, seed=2),
        noise(IMAGES, kv_heads, KEYS, SIZE, dtype=dtype, seed=3),
    )


MASKS: dict[str, Any] = {
    "none": None,
    "rows and keys": noise(ROWS, KEYS, seed=4),
    "keys": noise(1, KEYS, seed=4),
    "images": noise(IMAGES, ROWS, KEYS, seed=4),
    "images, one row": noise(IMAGES, 1, KEYS, seed=4),
    "one image, heads": noise(1, HEADS, ROWS, KEYS, seed=4),
    "all": noise(IMAGES, HEADS, ROWS, KEYS, seed=4),
    "booleans": noise(IMAGES, 1, ROWS, KEYS, seed=4) > 0,
    "boolean keys": noise(1, KEYS, seed=4) > 0,
}


def four(mask: torch.Tensor | None) -> torch.Tensor | None:
    return mask.unsqueeze(1) if mask is not None and mask.ndim == 3 else mask


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("size", ["auto", "max", 1, 4, 99])
@pytest.mark.parametrize("flat_in", [True, False])
@pytest.mark.parametrize("flat_out", [True, False])
def test_every_form_of_a_call_gives_what_torch_gives(
    mask: torch.Tensor | None, size: int | str, flat_in: bool, flat_out: bool
) -> None:
    q, k, v = inputs()
    expected = exact(q, k, v, attn_mask=four(mask))
    if flat_in:
        q, k, v = (each.transpose(1, 2).flatten(2) for each in (q, k, v))
    found = as_core_function(size)(
        None, q, k, v, HEADS, mask=mask, skip_reshape=not flat_in, skip_output_reshape=not flat_out
    )
    if flat_out:
        expected = expected.transpose(1, 2).flatten(2)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("most", [4 * KEYS, 40 * KEYS, 4 * KEYS * ROWS, 1])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_slices_of_any_size_give_the_same(most: int, mask: torch.Tensor | None) -> None:
    q, k, v = inputs()
    found = attend(q, k, v, heads_at_once=4, mask=four(mask), most=most)
    expected = exact(q, k, v, attn_mask=four(mask)).transpose(1, 2)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("flat_in", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 3])
def test_grouped_queries_share_their_keys(flat_in: bool, kv_heads: int) -> None:
    q, k, v = inputs(kv_heads=kv_heads)
    expected = exact(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)
    if flat_in:
        q, k, v = (each.transpose(1, 2).flatten(2) for each in (q, k, v))
    found = as_core_function(4)(
        None, q, k, v, HEADS, skip_reshape=not flat_in, enable_gqa=True, low_precision=True
    )
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_a_scale_of_the_callers_is_taken() -> None:
    q, k, v = inputs()
    found = as_core_function("auto")(None, q, k, v, HEADS, skip_reshape=True, scale=0.5)
    expected = exact(q, k, v, scale=0.5).transpose(1, 2).flatten(2)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", [None, torch.float32])
def test_half_precision_is_rounded_once(dtype: torch.dtype, precision: Any) -> None:
    q, k, v = (each * 3 for each in inputs(dtype))
    found = as_core_function("max")(
        None, q, k, v, HEADS, attn_precision=precision, skip_reshape=True, skip_output_reshape=True
    )
    expected = exact(q.double(), k.double(), v.double())
    assert found.dtype == dtype
    rounding = torch.finfo(dtype).eps / 2
    assert ((found.double() - expected).abs() <= rounding * expected.abs() + 2e-5).all()


def test_scores_that_overflow_half_precision_stay_numbers() -> None:
    q, k, v = (each * 60 for each in inputs(torch.float16))
    found = as_core_function("auto")(None, q, k, v, HEADS, skip_reshape=True)
    assert found.isfinite().all()


@pytest.mark.parametrize("closed", [float("-inf"), False])
def test_a_row_that_sees_no_key_is_zero(closed: float | bool) -> None:
    q, k, v = inputs()
    opened = 0.0 if closed is not False else True
    mask = torch.full((ROWS, KEYS), opened, dtype=type(opened) if opened is True else None)
    mask[3] = closed
    found = attend(q, k, v, heads_at_once=2, mask=mask)
    assert found.isfinite().all() and not found[:, 3].any() and found[:, 4].any()


def test_heads_at_once_are_as_for_diffusers() -> None:
    assert [heads_at_once(size, 8) for size in ("auto", "max", 3, 99)] == [4, 1, 3, 8]
    assert heads_at_once("auto", 1) == 1


@pytest.mark.parametrize("rows", [1, 4096, 65_536])
@pytest.mark.parametrize("keys", [77, 4096, 65_536, 2**24])
@pytest.mark.parametrize("images", [1, 2, 9216])
@pytest.mark.parametrize("heads", [1, 12])
def test_scores_never_exceed_the_bound(rows: int, keys: int, images: int, heads: int) -> None:
    plan = slices_for(images, heads, rows, keys)
    assert plan.images * plan.heads * plan.rows * keys * 4 <= MOST_BYTES
    assert 1 <= plan.heads <= heads and 1 <= plan.rows <= rows and 1 <= plan.images <= images


def test_what_fits_is_one_slice() -> None:
    assert slices_for(2, 8, 1024, 77) == Slices(2, 8, 1024)
    assert slices_for(2, 8, 4096, 4096) == Slices(1, 8, 512)


def test_the_peak_is_one_matrix_of_scores(accelerator: Any) -> None:
    tokens, heads, most = 2048, 8, 4 * MIB
    q, k, v = (
        noise(1, heads, tokens, SIZE, seed=seed).to(accelerator.device) for seed in (1, 2, 3)
    )
    base = accelerator.allocated

    def peak(work: Any) -> int:
        accelerator.reset_peaks()
        with torch.inference_mode():
            work()
        return accelerator.peak_allocated - base

    plain = peak(lambda: (q @ k.transpose(-2, -1)).softmax(-1) @ v)
    sliced = peak(lambda: attend(q, k, v, heads_at_once=4, most=most))
    scores = heads * tokens * tokens * 4
    assert plain >= 2 * scores
    copies = 4 * q.numel() * 4  # q's part, k's and v's group, and the result
    assert sliced <= most + copies < scores / 10

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from lowtide.memory.strategies import forward_chunking, placement
from lowtide.memory.strategies.base import Applied, Skipped
from lowtide.memory.strategies.forward_chunking import ForwardChunking, apply
from lowtide.tests.memory.strategies.pipes import Plain, undo


class FeedForward(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(8, 512)
        self.down = torch.nn.Linear(512, 4)
        self.sizes: list[int] = []

    def forward(self, hidden_states: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        self.sizes.append(hidden_states.shape[-2])
        return self.down(torch.relu(self.up(hidden_states))) * scale


@pytest.mark.parametrize(
    ("tokens", "chunk", "sizes"),
    [
        (77, 16, [16, 16, 16, 16, 13]),
        (7, 2, [2, 2, 2, 1]),
        (8, 4, [4, 4]),
        (3, 1, [1, 1, 1]),
        (5, 5, [5]),
        (5, 9, [5]),
    ],
)
def test_any_number_of_tokens_goes_through_in_chunks(
    tokens: int, chunk: int, sizes: list[int]
) -> None:
    layer = FeedForward()
    hidden = torch.randn(2, tokens, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = layer(hidden, scale=3.0)
        layer.sizes.clear()
        outcome = apply(ForwardChunking(chunk), layer, "unet")
        chunked = layer(hidden, scale=3.0)
    assert layer.sizes == sizes
    assert chunked.shape == (2, tokens, 4)
    assert torch.allclose(chunked, whole, atol=1e-5)
    assert isinstance(outcome, Applied)
    assert outcome.detail == f"{chunk} tokens at a time through 1 feed-forward layers"


def test_what_has_no_tokens_to_cut_runs_whole() -> None:
    layer = FeedForward()
    apply(ForwardChunking(2), layer, "unet")
    layer(torch.randn(9, 8))
    layer(torch.randn(1, 2, 3, 8))
    assert layer.sizes == [9, 2, 1]


def test_the_signature_stays_and_the_undo_is_complete() -> None:
    layer = FeedForward()
    before = inspect.signature(layer.forward)
    outcome = apply(ForwardChunking(2), layer, "unet")
    assert inspect.signature(layer.forward) == before
    undo([outcome])
    assert "forward" not in vars(layer)
    layer(torch.randn(1, 7, 8))
    assert layer.sizes == [7]


@pytest.mark.parametrize(
    ("name", "part", "layers"), [("tiny-sd15", "unet", 7), ("tiny-flux", "transformer", 4)]
)
@pytest.mark.parametrize("chunk", [13, 64])
def test_the_image_is_the_same_up_to_rounding(
    accelerator: Any, name: str, part: str, layers: int, chunk: int
) -> None:
    plain = Plain(accelerator, name)
    outcomes = [apply(ForwardChunking(chunk), getattr(plain.pipe, part), part)]
    assert isinstance(outcomes[0], Applied)
    assert f"through {layers} feed-forward layers" in outcomes[0].detail
    outcomes += placement.apply(placement.Placement(accelerator.device), plain.pipe)
    run = plain.measured()
    assert torch.allclose(run.image, plain.run.image, atol=2e-5)
    undo(outcomes)
    plain.assert_restored()


def test_the_peak_of_a_feed_forward_layer_falls_with_the_chunk(accelerator: Any) -> None:
    layer = FeedForward().to(accelerator.device)
    hidden = torch.randn(1, 1001, 8).to(accelerator.device)
    peaks: list[int] = []
    with torch.no_grad():
        for chunk in (1001, 500, 100):
            outcome = apply(ForwardChunking(chunk), layer, "unet")
            held = accelerator.allocated
            accelerator.reset_peaks()
            layer(hidden)
            peaks.append(accelerator.peak_allocated - held)
            undo([outcome])
    assert peaks[0] > 1001 * 512 * 4
    assert peaks[1] < 0.6 * peaks[0]
    assert peaks[2] < 0.2 * peaks[0]


def test_a_real_unets_peak_falls(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    unet = plain.pipe.unet.to(accelerator.device)
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0].ff
    tokens = torch.randn(2, 4095, 64).to(accelerator.device)
    peaks: list[int] = []
    for chunk in (4095, 256):
        outcome = apply(ForwardChunking(chunk), unet, "unet")
        held = accelerator.allocated
        accelerator.reset_peaks()
        with torch.no_grad():
            block(tokens)
        peaks.append(accelerator.peak_allocated - held)
        undo([outcome])
    assert peaks[1] < 0.3 * peaks[0]
    unet.to("cpu")
    del tokens
    plain.assert_restored()


def test_a_component_without_feed_forward_layers_is_skipped() -> None:
    outcome = apply(ForwardChunking(2), torch.nn.Linear(1, 1), "unet")
    assert outcome == Skipped(forward_chunking.NAME, "unet", "it has no feed-forward layer")

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.strategies.base import Applied, Skipped
from lowtide.memory.strategies.vae_slicing import VaeSlicing, apply
from lowtide.tests.memory.strategies.pipes import structure, tiny


class CountingVae(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, dict[str, Any]]] = []
        self.num_latent_frames_batch_size = 2

    def decode(self, z: torch.Tensor, **named: Any) -> tuple[torch.Tensor]:
        self.calls.append((z.shape[0], named))
        return (z * 2,)


@pytest.mark.parametrize(
    ("chunk", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1]), (5, [5]), (9, [5])]
)
def test_any_number_is_decoded_at_once(chunk: int, sizes: list[int]) -> None:
    vae = CountingVae()
    apply(VaeSlicing(chunk), vae, "vae")
    latents = torch.randn(5, 4, 2, 2)
    assert torch.equal(vae.decode(latents)[0], latents * 2)
    assert [size for size, _ in vae.calls] == sizes


def test_arguments_per_image_are_cut_along() -> None:
    vae = CountingVae()
    apply(VaeSlicing(2), vae, "vae")
    noise = torch.arange(3)
    vae.decode(torch.randn(3, 4, 2, 2), num_frames=3, temb=noise, seeds=["a", "b", "c"], scale=7)
    assert [named["num_frames"] for _, named in vae.calls] == [2, 1]
    assert [named["temb"].tolist() for _, named in vae.calls] == [[0, 1], [2]]
    assert [named["seeds"] for _, named in vae.calls] == [["a", "b"], ["c"]]
    assert all(named["scale"] == 7 for _, named in vae.calls)


def test_the_batch_may_be_given_by_name() -> None:
    vae = CountingVae()
    apply(VaeSlicing(2), vae, "vae")
    vae.decode(z=torch.randn(3, 4, 2, 2))
    assert [size for size, _ in vae.calls] == [2, 1]
    with pytest.raises(TypeError, match="missing"):
        vae.decode()


def test_a_video_vae_takes_that_many_frames() -> None:
    vae = CountingVae()
    outcome = apply(VaeSlicing(1), vae, "vae")
    assert isinstance(outcome, Applied)
    assert vae.num_latent_frames_batch_size == 1
    outcome.undo()
    assert vae.num_latent_frames_batch_size == 2
    apply(VaeSlicing(1, frames=False), vae, "vae")
    assert vae.num_latent_frames_batch_size == 2


def test_a_real_batch_is_the_same_to_the_bit_and_the_undo_complete() -> None:
    pipe = tiny("tiny-sd15", "float32")
    before = structure(pipe)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one_by_one = torch.cat([pipe.vae.decode(z[None]).sample for z in latents])
        whole = pipe.vae.decode(latents).sample
        outcome = apply(VaeSlicing(1), pipe.vae, "vae")
        sliced = pipe.vae.decode(latents).sample
    assert torch.equal(sliced, one_by_one)
    assert torch.allclose(sliced, whole, atol=1e-5)
    assert isinstance(outcome, Applied)
    outcome.undo()
    assert structure(pipe) == before


def test_less_memory_is_held_for_a_batch(accelerator: Any) -> None:
    vae = tiny("tiny-sd15").vae.to(accelerator.device)
    latents = torch.randn(4, 4, 16, 16).half().to(accelerator.device)
    peaks = {}
    with torch.no_grad():
        for chunk in (4, 2, 1):
            outcome = apply(VaeSlicing(chunk), vae, "vae")
            accelerator.reset_peaks()
            vae.decode(latents)
            peaks[chunk] = accelerator.peak_allocated - accelerator.allocated
            assert isinstance(outcome, Applied)
            outcome.undo()
    assert peaks[1] < 0.7 * peaks[2] < 0.7 * peaks[4]


def test_a_component_without_decode_is_skipped() -> None:
    assert isinstance(apply(VaeSlicing(1), torch.nn.Linear(1, 1), "vae"), Skipped)

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from lowtide.memory.strategies import placement
from lowtide.memory.strategies.base import Applied, Outcome
from lowtide.memory.strategies.cpu_mode import CpuMode, apply
from lowtide.memory.tensors import device_bytes
from lowtide.tests.memory.strategies.pipes import Plain, same_values, structure, tiny, undo, values


def only_the_denoiser(plain: Plain, accelerator: Any) -> list[Outcome]:
    mode = CpuMode(accelerator.device)
    outcomes = [apply(mode, getattr(plain.pipe, n), n) for n in ("text_encoder", "vae")]
    return outcomes + placement.apply(
        placement.Placement(accelerator.device, ("unet",)), plain.pipe
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float16", 0.02)])
def test_only_the_denoiser_takes_memory_of_the_device(
    accelerator: Any, dtype: str, tolerance: float
) -> None:
    plain = Plain(accelerator, dtype=dtype)
    outcomes = only_the_denoiser(plain, accelerator)
    details = [one.detail for one in outcomes if isinstance(one, Applied)]
    assert details[:2] == ["computes on the CPU"] * 2
    held = accelerator.allocated
    assert held < 1.05 * device_bytes(plain.pipe.unet) + (1 << 20)
    run = plain.measured()
    assert torch.allclose(run.image, plain.run.image, atol=tolerance)
    assert run.peak - held < 0.5 * (plain.run.peak - plain.weights)
    assert run.peak < 0.6 * plain.run.peak
    assert run.h2d < 0.03 * plain.weights, "weights stay, answers move"
    assert device_bytes(plain.pipe.vae) == device_bytes(plain.pipe.text_encoder) == 0
    undo(outcomes)
    plain.assert_restored()


def test_what_was_on_the_device_leaves_it_and_comes_back(accelerator: Any) -> None:
    vae = tiny("tiny-sd15", "float32").vae.to(accelerator.device)
    outcome = apply(CpuMode(accelerator.device), vae, "vae")
    assert device_bytes(vae) == 0
    with torch.no_grad():
        image = vae.decode(torch.zeros(1, 4, 8, 8, device=accelerator.device)).sample
    assert image.device == accelerator.device
    undo([outcome])
    assert {p.device for p in vae.parameters()} == {accelerator.device}


@pytest.mark.parametrize("as_tuple", [False, True])
def test_a_distribution_of_latents_comes_back_to_the_device(
    accelerator: Any, as_tuple: bool
) -> None:
    vae = tiny("tiny-sd15", "float16").vae
    pixels = torch.rand(1, 3, 32, 32).half()
    with torch.no_grad():
        expected = vae.float().encode(pixels.float()).latent_dist.mean
        apply(CpuMode(accelerator.device), vae.half(), "vae")
        answer = vae.encode(pixels.to(accelerator.device), return_dict=not as_tuple)
    found = answer[0] if as_tuple else answer.latent_dist
    assert found.mean.device == found.sample().device == accelerator.device
    assert found.mean.dtype == torch.float16
    assert torch.allclose(found.mean.float().cpu(), expected, atol=1e-2)


class Inner(torch.nn.Module):
    """Remembers where and in which type it computes; ``forward`` calls ``decode``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((2,), 1 / 3, dtype=torch.float16))
        self.register_buffer("shift", torch.ones(2, dtype=torch.bfloat16))
        self.seen: list[tuple[str, torch.dtype, torch.dtype]] = []
        self.breaks = False

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        self.seen.append((z.device.type, z.dtype, self.weight.dtype))
        if self.breaks:
            raise KeyboardInterrupt
        return z * self.weight

    def forward(self, z: torch.Tensor | None = None, *, ids: Any = None) -> Any:
        z = torch.ones(2, dtype=self.weight.dtype) if z is None else z
        return {"sample": self.decode(z), "ids": ids, "text": "kept"}


def test_half_weights_compute_in_float32_and_are_the_same_objects_afterwards(
    accelerator: Any,
) -> None:
    part = Inner()
    data, pointer = part.weight.detach().clone(), part.weight.data_ptr()
    apply(CpuMode(accelerator.device), part, "text_encoder")
    where = accelerator.device
    ids = torch.tensor([[1, 2]], device=where)
    answer = part(torch.ones(2, dtype=torch.float16, device=where), ids=[ids])
    assert part.seen == [("cpu", torch.float32, torch.float32)]
    sample = answer["sample"]
    assert (sample.device, sample.dtype) == (where, torch.float16)
    assert (answer["ids"][0].device, answer["ids"][0].dtype) == (where, torch.int64)
    assert answer["text"] == "kept"
    assert part.weight.data_ptr() == pointer
    assert torch.equal(part.weight, data)
    assert part.shift.dtype == torch.bfloat16


def test_a_call_that_breaks_off_leaves_the_weights_in_their_type(accelerator: Any) -> None:
    part = Inner()
    pointer = part.weight.data_ptr()
    apply(CpuMode(accelerator.device), part, "text_encoder")
    part.breaks = True
    with pytest.raises(KeyboardInterrupt):
        part(torch.ones(2, dtype=torch.float16, device=accelerator.device))
    assert (part.weight.dtype, part.weight.data_ptr()) == (torch.float16, pointer)


def test_answers_go_to_the_inputs_or_else_to_the_pipelines_device(accelerator: Any) -> None:
    part = Inner()
    apply(CpuMode(accelerator.device), part, "text_encoder")
    assert part(torch.ones(2).half())["sample"].device.type == "cpu"
    assert part()["sample"].device == accelerator.device
    ids = torch.ones(1, device=accelerator.device)
    assert part(ids={"nested": (ids,)})["sample"].device == accelerator.device


def test_the_signature_stays_and_the_undo_is_complete(accelerator: Any) -> None:
    pipe = tiny()
    before, kept = structure(pipe), values(pipe)
    signatures = [inspect.signature(f) for f in (pipe.vae.decode, pipe.vae.encode)]
    outcome = apply(CpuMode(accelerator.device), pipe.vae, "vae")
    assert [inspect.signature(f) for f in (pipe.vae.decode, pipe.vae.encode)] == signatures
    undo([outcome])
    assert structure(pipe) == before
    assert same_values(values(pipe), kept)


def test_a_failure_half_way_undoes_itself(accelerator: Any) -> None:
    part = Inner().to(accelerator.device)

    class Refuses(type(part)):  # type: ignore[misc]
        @property
        def decode(self) -> Any:
            if "forward" in vars(self):
                raise RuntimeError("half way")
            return None

    part.__class__ = Refuses
    with pytest.raises(RuntimeError, match="half way"):
        apply(CpuMode(accelerator.device), part, "vae")
    assert "forward" not in vars(part)
    assert part.weight.device == accelerator.device

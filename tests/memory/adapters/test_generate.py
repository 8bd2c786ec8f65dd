"""Requests are checked before anything moves, passed on as the pipeline takes them, stopped."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lowtide.memory.adapters.generate import Request, check, run
from lowtide.memory.adapters.progress import Silent, stop
from lowtide.memory.adapters.synthetic import build
from lowtide.memory.errors import ConfigError, Interrupted, TargetError
from lowtide.tests.memory.tiny import TINY, held, used

REQUEST = Request("a cat", "bad", 64, 64, 2, 5.0, 3, 1)


class Steps(Silent):
    """Remembers the steps; stops at the n-th chance if asked to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: list[tuple[int, int, tuple[int, ...]]] = []
        self._left = stop_at

    def step(self, done: int, total: int, latents: Any) -> None:
        self.seen.append((done, total, tuple(latents.shape)))

    def check(self) -> None:
        if self._left is not None:
            if self._left == 0:
                stop()
            self._left -= 1


class Whole:
    """A pipeline that keeps what it was given."""

    vae_scale_factor = 8

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self._progress_bar_config = {"desc": "mine", "disable": False}

    def set_progress_bar_config(self, **settings: Any) -> None:
        self._progress_bar_config = settings

    def __call__(self, prompt: str, width: int, generator: Any, output_type: str) -> Any:
        self.given = {"prompt": prompt, "width": width, "generator": generator}
        self.bar = dict(self._progress_bar_config)
        self.modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        return SimpleNamespace(images=torch.tensor([[[[-0.5]], [[0.25]], [[1.5]]]]).half())


@pytest.fixture(scope="module", params=TINY)
def pipe(request: pytest.FixtureRequest) -> Any:
    return used(request.param)


def made(pipe: Any, **asked: Any) -> torch.Tensor:
    request = replace(REQUEST, **asked)
    check(pipe, request)
    return run(pipe, request, Silent())


def test_images_have_the_size_and_number_asked_for(pipe: Any) -> None:
    images = made(pipe, width=96, height=64, batch_size=2, steps=1)
    assert (images.shape, images.dtype, images.device.type) == (
        (2, 64, 96, 3),
        torch.float32,
        "cpu",
    )
    assert images.is_contiguous() and images.min() >= 0 and images.max() <= 1
    assert not torch.equal(images[0], images[1])


def test_a_seed_gives_the_same_image_and_another_a_different_one(pipe: Any) -> None:
    first = made(pipe)
    assert torch.equal(made(pipe), first)
    assert not torch.equal(made(pipe, seed=2**64 - 1), first)


def test_the_negative_prompt_acts_where_the_pipeline_takes_one() -> None:
    pipe = used("tiny-sd15")
    assert not torch.equal(made(pipe, negative="dog"), made(pipe, negative=""))


def test_every_step_is_reported(pipe: Any) -> None:
    steps = Steps()
    run(pipe, replace(REQUEST, steps=3), steps)
    assert [(done, total) for done, total, _ in steps.seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(shape[0] == 1 for _, _, shape in steps.seen)


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_a_stop_at_any_step_leaves_memory_at_its_baseline(
    accelerator: Any, pipe: Any, stop_at: int
) -> None:
    pipe.to(accelerator.device)
    run(pipe, REQUEST, Silent())
    base = held(accelerator)
    steps = Steps(stop_at)
    with pytest.raises(Interrupted):
        run(pipe, REQUEST, steps)
    assert len(steps.seen) == stop_at
    assert held(accelerator) == base
    pipe.to("cpu")


# -- what is passed on -------------------------------------------------------------------------


def test_a_pipeline_is_given_only_what_it_takes() -> None:
    pipe = Whole()
    image = run(pipe, REQUEST, Silent())
    assert (pipe.given["prompt"], pipe.given["width"]) == ("a cat", 64)
    assert pipe.given["generator"].device.type == "cpu"
    assert pipe.given["generator"].initial_seed() == 3
    assert image.tolist() == [[[[0.0, 0.25, 1.0]]]]


def test_it_runs_outside_inference_mode_and_without_gradients() -> None:
    pipe = Whole()
    with torch.inference_mode():
        run(pipe, REQUEST, Silent())
    assert pipe.modes == (False, False)


def test_the_progress_bar_is_quiet_for_the_run_and_then_as_it_was() -> None:
    pipe = Whole()
    run(pipe, REQUEST, Silent())
    assert pipe.bar == {"desc": "mine", "disable": True}
    assert pipe._progress_bar_config == {"desc": "mine", "disable": False}
    with pytest.raises(Interrupted):
        run(pipe, REQUEST, Steps(0))
    assert pipe._progress_bar_config == {"desc": "mine", "disable": False}


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"width": 60}, r"`width` = 60 pixels .* steps of 8; give 56 or 64"),
        ({"height": 7}, r"`height` = 7 pixels .* give 8$"),
        ({"height": 0}, r"`height` = 0"),
        ({"steps": 0}, r"`steps` = 0; give 1 or more"),
        ({"batch_size": -1}, r"`batch_size` = -1; give 1 or more"),
        ({"seed": -1}, r"`seed` = -1"),
        ({"seed": 2**64}, r"`seed` = 18446744073709551616"),
    ],
)
def test_a_request_that_cannot_work_is_named(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(Whole(), replace(REQUEST, **asked))


def test_packed_latents_double_the_step() -> None:
    pipe = used("tiny-flux")
    with pytest.raises(ConfigError, match=r"steps of 16; give 64 or 80"):
        check(pipe, replace(REQUEST, width=72))
    check(pipe, replace(REQUEST, width=80))


def test_a_pipeline_without_a_prompt_is_refused() -> None:
    class Upscaler:
        def __call__(self, image: Any) -> None:
            """Takes no prompt."""

    with pytest.raises(TargetError, match="Upscaler takes no prompt"):
        check(Upscaler(), REQUEST)


@pytest.mark.parametrize(
    ("name", "part"), [("tiny-sd15", "vae"), ("tiny-sdxl", "unet"), ("tiny-flux", "transformer")]
)
def test_a_pipeline_that_could_make_no_image_is_refused(name: str, part: str) -> None:
    pipe = build(name, "float32")
    check(pipe, REQUEST)
    setattr(pipe, part, None)
    with pytest.raises(TargetError, match=f"has no {part} loaded, .* load a pipeline whose folder"):
        check(pipe, REQUEST)

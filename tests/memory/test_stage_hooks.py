"""Stages are entered and left around each working component, and the pipeline is then as it was."""

from __future__ import annotations

import pytest
import torch
from lowtide.memory.stages import StageHooks
from lowtide.tests.memory.toys import Pipeline


class Log:
    def __init__(self, pipe: Pipeline) -> None:
        self.seen: list[str] = []
        self.hooks = StageHooks(
            pipe, lambda s: self.seen.append(f"+{s}"), lambda s: self.seen.append(f"-{s}")
        )


def test_a_run_passes_through_its_stages_in_order() -> None:
    pipe = Pipeline()
    log = Log(pipe)
    pipe(steps=1)
    assert log.seen == []
    log.hooks.install()
    pipe(steps=2)
    names = ["text_encoding", "denoising", "denoising", "decoding"]
    assert log.seen == [f"{sign}{name}" for name in names for sign in "+-"]


def test_a_forward_that_raises_is_left_too() -> None:
    pipe = Pipeline()
    log = Log(pipe)
    log.hooks.install()
    with pytest.raises(RuntimeError):
        pipe.unet(torch.ones(3, 3) @ torch.ones(2, 2))
    with pytest.raises(TypeError):
        pipe.unet(None)
    assert log.seen == ["+denoising", "-denoising"]
    with pytest.raises(TypeError):
        pipe.vae.decode(None)
    assert log.seen[2:] == ["+decoding", "-decoding"]


def test_removing_leaves_nothing_behind() -> None:
    pipe = Pipeline()
    before = {name: set(vars(part)) for name, part in pipe.components.items() if part}
    log = Log(pipe)
    log.hooks.install()
    assert "decode" in vars(pipe.vae)
    log.hooks.remove()
    log.hooks.remove()
    assert {name: set(vars(part)) for name, part in pipe.components.items() if part} == before
    assert not pipe.unet._forward_hooks and not pipe.unet._forward_pre_hooks
    pipe(steps=1)
    assert log.seen == []


def test_a_wrapper_put_around_ours_meanwhile_stays_and_ours_rests() -> None:
    pipe = Pipeline()
    log = Log(pipe)
    log.hooks.install()
    ours = pipe.vae.decode
    pipe.vae.decode = lambda x: ours(x)  # type: ignore[method-assign]
    theirs = pipe.vae.decode
    log.hooks.remove()
    assert pipe.vae.decode is theirs
    pipe.vae.decode(torch.ones(1))
    assert log.seen == []


def test_components_of_no_stage_are_left_alone() -> None:
    pipe = Pipeline()
    pipe.tokenizer = torch.nn.Linear(1, 1)  # type: ignore[assignment]
    log = Log(pipe)
    log.hooks.install()
    assert not pipe.tokenizer._forward_hooks
    log.hooks.remove()

"""A failed run's tensors go with its frames, nested functions' shared variables included."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lowtide.memory.frames import forget_locals
from lowtide.memory.units import MIB


def tensor(accelerator: Any) -> torch.Tensor:
    return torch.zeros(MIB, dtype=torch.uint8, device=accelerator.device)


def caught(run: Callable[[], None]) -> BaseException:
    try:
        run()
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("nothing was raised")


def test_locals_of_every_finished_frame_go(accelerator: Any) -> None:
    base = accelerator.allocated

    def outer() -> None:
        kept = tensor(accelerator)
        inner()
        del kept

    def inner() -> None:
        kept = tensor(accelerator)
        raise ValueError(kept.numel())

    error = caught(outer)
    assert accelerator.allocated == base + 2 * MIB
    forget_locals(error)
    assert accelerator.allocated == base


def test_variables_a_nested_function_shares_go(accelerator: Any) -> None:
    base = accelerator.allocated

    def outer() -> None:
        shared = [tensor(accelerator)]

        def nested() -> None:
            raise ValueError(len(shared))

        nested()

    error = caught(outer)
    assert accelerator.allocated == base + MIB
    forget_locals(error)
    assert accelerator.allocated == base


def test_what_outlives_the_run_keeps_its_variables(accelerator: Any) -> None:
    count, held, callbacks = [0], tensor(accelerator), []

    def run() -> None:
        own = tensor(accelerator)
        label = "step"

        def callback() -> tuple[str, int, int]:
            return label, count[0], held.numel()

        def fail() -> None:
            raise ValueError(own.numel(), label)

        callbacks.append(callback)
        fail()

    forget_locals(caught(run))
    assert callbacks[0]() == ("step", 0, MIB)


def test_a_copy_made_by_asking_for_the_locals_goes(accelerator: Any) -> None:
    base = accelerator.allocated

    def run() -> None:
        kept = tensor(accelerator)
        raise ValueError(len(locals()), kept.numel())

    error = caught(run)
    forget_locals(error)
    assert accelerator.allocated == base
    assert error.args == (2, MIB)


def test_errors_it_came_from_are_followed(accelerator: Any) -> None:
    base = accelerator.allocated

    def first() -> None:
        kept = tensor(accelerator)
        raise KeyError(kept.numel())

    def second() -> None:
        try:
            first()
        except KeyError:
            kept = tensor(accelerator)
            raise ValueError(kept.numel())  # noqa: B904

    def third() -> None:
        try:
            second()
        except ValueError as error:
            kept = tensor(accelerator)
            raise RuntimeError(kept.numel()) from error

    error = caught(third)
    assert accelerator.allocated == base + 3 * MIB
    forget_locals(error)
    assert accelerator.allocated == base


def test_errors_that_refer_to_each_other_end(accelerator: Any) -> None:
    def run() -> None:
        kept = tensor(accelerator)
        raise ValueError(kept.numel())

    base = accelerator.allocated
    one, other = caught(run), caught(run)
    one.__cause__, other.__context__ = other, one
    forget_locals(one)
    assert accelerator.allocated == base


def test_the_frame_that_handles_the_error_keeps_its_variables(accelerator: Any) -> None:
    kept = tensor(accelerator)

    def read() -> int:
        return kept.numel()

    try:
        raise ValueError
    except ValueError as error:
        forget_locals(error)
    assert kept.numel() == read() == MIB


def test_the_traceback_still_prints() -> None:
    def run() -> None:
        raise ValueError("the reason")

    error = caught(run)
    before = traceback.format_exception(error)
    forget_locals(error)
    assert traceback.format_exception(error) == before


def test_a_hooked_module_lets_go_of_its_input(accelerator: Any) -> None:
    base = accelerator.allocated
    module = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(4, 4))
    module.register_forward_hook(lambda *_: None, always_call=True)

    def run() -> None:
        module(tensor(accelerator))

    with pytest.raises(RuntimeError) as info:
        run()
    assert accelerator.allocated > base
    forget_locals(info.value)
    assert accelerator.allocated == base

"""Prompts that follow each other, under a budget or as ComfyUI does: what each moves and leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
from beside_core import small
from executed import SIM, WATCH, Graph, done, fresh, held, interrupt_now, run, runner
from lowtide.memory.adapters.comfy import executor as followed
from lowtide.memory.adapters.comfy import measured as measurements
from lowtide.memory.units import GIB
from subjects import EDGE, subject
from workflows import ALL, text_to_image

TEXTS = {"4", "5"}
WARM = 4
"""Prompts of which the last counts: in the first ones its steps are measured."""


def named(text: bool, workflow: str = "text_to_image", **more: Any) -> Callable[[int], Graph]:
    """Prompts by their number: other seeds, with ``text`` other words as well."""

    def graph(number: int) -> Graph:
        found: Graph = ALL[workflow](**more) if workflow in ALL else text_to_image(**more)
        found["7"]["inputs"]["seed"] = number
        if text:
            found["4"]["inputs"]["text"] = f"a boat {number}"
            found["5"]["inputs"]["text"] = f"fog {number}"
        return found

    return graph


def budgeted(graph: Callable[[int], Graph], budget: int) -> Callable[[int], Graph]:
    def found(number: int) -> Graph:
        made = graph(number)
        made["2"]["inputs"]["budget_gb"] = budget / GIB
        return made

    return found


def last(graph: Callable[[int], Graph], stop_at: str | None = None) -> dict[str, Any]:
    """The last of some prompts.

    Returns:
        ``peak`` in bytes; ``moved`` to the device in each node that ran, and ``there``, the weights
        on it when the node had ended; ``left`` after the prompt. With ``stop_at`` it is interrupted
        as that node begins.
    """
    one = runner()
    moved: dict[str, int] = {}
    there: dict[str, int] = {}
    begun = [0]

    def begins(node: str) -> None:
        begun[0] = SIM.counters()["h2d"]
        if node == stop_at:
            interrupt_now()

    def ended(node: str) -> None:
        moved[node] = SIM.counters()["h2d"] - begun[0]
        there[node] = weights()

    for number in range(WARM - 1):
        done(one, graph(number))
    WATCH.before, WATCH.after = begins, ended
    SIM.reset_peaks()
    assert run(one, graph(WARM)) == (stop_at is None)
    WATCH.before = WATCH.after = None
    return {"peak": SIM.peak_allocated, "moved": moved, "there": there, "left": held()[0]}


def weights() -> int:
    """Bytes of the loaded models' weights on the device."""
    return sum(int(it.model.loaded_size()) for it in mm.current_loaded_models if it.model)


def under(
    budget: int,
    *,
    text: bool,
    level: str = "none",
    cleanup: str = "off",
    stop_at: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The last of some prompts under a budget of bytes, as ``last`` has it."""
    fresh()
    followed.install()
    measurements.forget_all()
    graph = named(text, level=level, cleanup=cleanup, **more)
    found = last(budgeted(graph, budget), stop_at)
    fresh()
    return found


def beside_core(family: str, share: float, text: bool) -> dict[str, Any]:
    """Prompts by ComfyUI with room for ``share`` of the model besides its estimate, and under a
    budget of the peak that it has then."""
    fresh()
    one = subject(family)
    estimate = int(one.model.memory_required([2, one.shape.channels, EDGE, EDGE]))
    room = estimate + int(share * one.model.model_size())
    with contextlib.ExitStack() as stack:
        stack.enter_context(small(room))
        core = last(named(text, level=None, family=family))
    return {"core": core, "ours": under(core["peak"], text=text, family=family)}

"""The text encoder between two texts of a prompt, under a budget."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
from executed import SIM, WATCH, fresh, held, interrupt_now, run, runner
from lowtide.memory.adapters.comfy import executor as followed
from workflows import text_to_image

TEXTS = {"4", "5"}


def between_texts(level: str, budget_mib: int, stop: bool = False) -> dict[str, Any]:
    """Bytes copied to the device in each node, and of the models that were there when it had ended,
    in the order they ran; ``peak`` and ``left`` of the prompt. One before it measured the budget.
    With ``stop`` it is interrupted as its second text begins."""
    fresh()
    followed.install()
    one = runner()
    moved: dict[str, int] = {}
    there: dict[str, int] = {}
    before = [0]

    def begins(node: str) -> None:
        before[0] = SIM.counters()["h2d"]
        if stop and node in TEXTS and moved.keys() & TEXTS:
            interrupt_now()

    def ended(node: str) -> None:
        moved[node] = SIM.counters()["h2d"] - before[0]
        there[node] = sum(int(it.model.loaded_size()) for it in mm.current_loaded_models)

    for number in range(2):
        graph = text_to_image(level=level, cleanup="off", seed=number, text=f"boat {number}")
        graph["5"]["inputs"]["text"] = f"fog {number}"
        graph["2"]["inputs"]["budget_gb"] = round(budget_mib / 1024, 3)
        moved.clear()
        SIM.reset_peaks()
        if number:
            WATCH.before, WATCH.after = begins, ended
        assert run(one, graph) != (stop and number == 1)
        WATCH.before = WATCH.after = None
    peak = SIM.peak_allocated
    left = held()
    fresh()
    texts = [node for node in moved if node in TEXTS]
    return {
        "moved": [moved[node] for node in texts],
        "there": [there[node] for node in texts],
        "peak": peak,
        "left": left[0],
    }

"""Prompts under a budget, and then the same models without Lowtide's nodes."""

from __future__ import annotations

from typing import Any

import workflows
from beside_core import small
from executed import WATCH, Graph, done, fresh, runner
from lowtide.memory.adapters.comfy.visits import outputs_of
from staying import begin, budgeted, weights
from subjects import subject


def unplugged(share: float, room: float) -> dict[str, Any]:
    """Prompts with a LoRA under a budget, and then without Lowtide's nodes, where ComfyUI has room
    for a part of the model: bytes of weights ``there`` when the first of them begins, and the
    ``differences`` of their images from those ComfyUI makes with all of it there."""
    size = int(subject("sd15").model.model_size())

    def made(number: int, level: str | None) -> Graph:
        graph = workflows.lora(level="none", cleanup="off", seed=number)
        if level is None:
            del graph["2"], graph["3"]
            for node, sources in (("4", "clip"), ("5", "clip"), ("7", "model"), ("8", "vae")):
                graph[node]["inputs"][sources] = {
                    "clip": ["10", 1], "model": ["10", 0], "vae": ["1", 2],
                }[sources]  # fmt: skip
        return graph

    begin()
    one, there = runner(), []
    budget = budgeted(lambda number: made(number, "none"), int(size * share))
    for number in range(3):
        done(one, budget(number))
    stayed = weights()
    WATCH.before = lambda _: there.append(weights())
    ours = []
    with small(int(size * room)):
        for number in range(3):
            done(one, made(number, None))
            ours.append(outputs_of(one.caches, "8")[0][0].clone())
    fresh()
    one, stock = runner(), []
    for number in range(3):
        done(one, made(number, None))
        stock.append(outputs_of(one.caches, "8")[0][0].clone())
    fresh()
    differences = [float((a - b).abs().max()) for a, b in zip(ours, stock, strict=True)]
    return {"stayed": stayed, "there": there[0], "differences": differences}

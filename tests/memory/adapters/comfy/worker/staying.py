"""Prompts that follow each other, under a budget or as ComfyUI does: what each moves and leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import comfy.model_management as mm
import torch
import workflows
from beside_core import small
from executed import SIM, WATCH, Graph, done, fresh, held, interrupt_now, run, runner
from lowtide.memory import verified
from lowtide.memory.adapters.comfy import executor as followed
from lowtide.memory.adapters.comfy import measured as measurements
from lowtide.memory.adapters.comfy.plan_loaded import loaded_subject, prediction
from lowtide.memory.adapters.comfy.visits import outputs_of
from lowtide.memory.planner.cache import TraceCache
from lowtide.memory.planner.work import Work
from lowtide.memory.units import GIB
from lowtide.nodes.levels import MemoryLevelSelector
from lowtide.nodes.settings import MemorySettings
from subjects import EDGE, subject

import nodes

Graphs = Callable[[int], Graph]
TEXTS = ("4", "5")
WARM = 4
"""Prompts of which the last counts: in the first ones its steps are measured."""
COSTS = {"rates": None, "workspace_factor": 0.0, "context_bytes": 0}


def graphs(workflow: str, family: str, text: bool, level: str | None, cleanup: str) -> Graphs:
    """Prompts by their number: each with its seed, with ``text`` with words of its own as well."""

    def graph(number: int) -> Graph:
        found: Graph = getattr(workflows, workflow)(level=level, cleanup=cleanup, family=family)
        sampling = found["7"]["inputs"]
        sampling["seed"] = number
        if subject(family).clip is None:
            words = {"class_type": "TestWords", "inputs": {"name": family}}
            found = {node: it for node, it in found.items() if node not in TEXTS} | {"4": words}
            sampling |= {"positive": ["4", 0], "negative": ["4", 1], "cfg": 1.0}
        elif text:
            found["4"]["inputs"]["text"] = f"a boat {number}"
            found["5"]["inputs"]["text"] = f"fog {number}"
        return found

    return graph


def last(graph: Graphs, stop_at: str | None = None) -> dict[str, Any]:
    """The last of some prompts.

    Returns:
        ``peak`` in bytes, ``highest`` that of all the prompts; ``moved`` to the device in each node
        that ran, and ``there``, the weights on it when the node began; ``left``, those after the
        prompt; ``image``. With ``stop_at`` it is interrupted as that node begins.
    """
    one = runner()
    moved: dict[str, int] = {}
    there: dict[str, int] = {}
    begun, peaks = [0], []

    def begins(node: str) -> None:
        begun[0] = SIM.counters()["h2d"]
        there[node] = weights()
        if node == stop_at:
            interrupt_now()

    def ended(node: str) -> None:
        moved[node] = SIM.counters()["h2d"] - begun[0]

    for number in range(WARM):
        if number == WARM - 1:
            WATCH.before, WATCH.after = begins, ended
        SIM.reset_peaks()
        stops = stop_at is not None and number == WARM - 1
        if stops or number < WARM - 1:
            assert run(one, graph(number)) != stops
        else:
            done(one, graph(number))
        peaks.append(SIM.peak_allocated)
    WATCH.before = WATCH.after = None
    image = outputs_of(one.caches, "8")
    found = {
        "peak": peaks[-1],
        "highest": max(peaks),
        "moved": moved,
        "there": there,
        "left": weights(),
    }
    return {**found, "image": None if image is None else image[0][0]}


def weights() -> int:
    """Bytes of the loaded models' weights on the device."""
    return sum(int(it.model.loaded_size()) for it in mm.current_loaded_models if it.model)


def budgeted(graph: Graphs, *budgets: int) -> Graphs:
    """The same under budgets of bytes, one prompt each in turn."""

    def found(number: int) -> Graph:
        made = graph(number)
        made["2"]["inputs"]["budget_gb"] = budgets[number % len(budgets)] / GIB
        return made

    return found


def begin() -> None:
    fresh()
    followed.install()
    measurements.forget_all()


def under(
    budget: int,
    *,
    workflow: str = "text_to_image",
    family: str = "sd15",
    text: bool = False,
    level: str = "none",
    cleanup: str = "off",
    stop_at: str | None = None,
    change: Callable[[Graph], None] | None = None,
) -> dict[str, Any]:
    """The last of some prompts under a budget, as ``last`` has it; ``verified`` are stages' peaks
    as they were measured, by name, and what was used in all, ``size`` the weights of the parts."""
    begin()
    graph = budgeted(graphs(workflow, family, text, level, cleanup), budget)

    def changed(number: int) -> Graph:
        made = graph(number)
        if change is not None:
            change(made)
        return made

    found = last(changed, stop_at)
    del found["image"]
    found["verified"] = {
        run.stages[0].stage: (run.stages[0].measured, run.highest) for run in verified.runs()
    }
    found["size"] = {name: int(it.model_size()) for name, it in subject(family).parts().items()}
    fresh()
    assert held() == (0, 0)
    return found


def beside_core(family: str, share: float, text: bool) -> dict[str, Any]:
    """Prompts by ComfyUI with room for ``share`` of the model besides its estimate; and under a
    budget of the peak that it has then, and of what a budget keeps free."""
    fresh()
    one = subject(family)
    estimate = int(one.model.memory_required([2, one.shape.channels, EDGE, EDGE]))
    with small(estimate + int(share * one.model.model_size())):
        core = last(graphs("text_to_image", family, text, None, "off"))
    del core["image"]
    ours = under(core["peak"] + measurements.SLACK, family=family, text=text)
    return {"core": core, "ours": ours}


def in_fp8(graph: Graph) -> None:
    """Have the model stored in FP8."""
    kinds = MemorySettings.INPUT_TYPES()["required"]
    given = {name: kind[1]["default"] for name, kind in kinds.items() if name != "config"}
    inputs = {**given, "config": ["2", 0], "fp8_storage": "on"}
    graph["13"] = {"class_type": "LowtideMemorySettings", "inputs": inputs}
    graph["3"]["inputs"]["config"] = ["13", 0]


def images(
    workflow: str, family: str, shares: list[float], strengths: list[float], fp8: bool
) -> list[float]:
    """The largest difference of images made under budgets of these parts of the model, one prompt
    each in turn with the LoRAs' strengths, from those that are made without a budget."""
    size = int(subject(family).model.model_size())

    def made(number: int) -> Graph:
        graph = graphs(workflow, family, False, "none", "off")(number)
        if fp8:
            in_fp8(graph)
        if "strength_model" in graph.get("10", {}).get("inputs", ()):
            graph["10"]["inputs"]["strength_model"] = strengths[number % len(strengths)]
        return graph

    def pictures(graph: Graphs) -> list[torch.Tensor]:
        one, found = runner(), []
        for number in range(WARM + 2):
            done(one, graph(number))
            found.append(outputs_of(one.caches, "8")[0][0].clone())
        fresh()
        return found

    begin()
    budgets = [int(size * share) for share in shares]
    ours = pictures(budgeted(made, *budgets))
    stock = pictures(made)
    assert len({float(it.sum()) for it in stock}) == len(stock)
    return [float((a - b).abs().max()) for a, b in zip(ours, stock, strict=True)]


def without_clip(budget: int) -> dict[str, Any]:
    """As ``under``, with new words; the text encoder is not under the budget, and ``clip`` its
    size."""

    def unplug(graph: Graph) -> None:
        del graph["3"]["inputs"]["clip"]
        for node in TEXTS:
            graph[node]["inputs"]["clip"] = ["1", 1]

    return under(budget, text=True, change=unplug)


def two_models(budget: int, negative: str) -> dict[str, Any] | None:
    """As ``under``, with a guider that has a model for the negative prompt: the same one, or
    another one, ``capped`` or not; ``None`` where ComfyUI has no such guider."""
    if "DualModelGuider" not in nodes.NODE_CLASS_MAPPINGS:
        return None

    def guided(graph: Graph) -> None:
        model = ["3", 0] if negative == "same" else ["20", 0]
        graph["20"] = workflows._node("TestOtherModel", name="sd15")
        if negative == "capped":
            graph["21"] = workflows._node(
                "LowtideOptimizePipeline", config=["2", 0], model=["20", 0]
            )
            model = ["21", 0]
        conds = {"positive": ["4", 0], "negative": ["5", 0], "cfg": 4.0}
        graph["22"] = workflows._node(
            "DualModelGuider", model=["3", 0], model_negative=model, **conds
        )
        graph["23"] = workflows._node("RandomNoise", noise_seed=graph["7"]["inputs"]["seed"])
        graph["24"] = workflows._node("KSamplerSelect", sampler_name="euler")
        steps = {"model": ["3", 0], "scheduler": "normal", "steps": 2, "denoise": 1.0}
        graph["25"] = workflows._node("BasicScheduler", **steps)
        of = {"noise": "23", "guider": "22", "sampler": "24", "sigmas": "25", "latent_image": "6"}
        links = {name: [node, 0] for name, node in of.items()}
        graph["7"] = workflows._node("SamplerCustomAdvanced", **links)

    return under(budget, text=True, change=guided)


def counted(budget: int) -> dict[str, Any]:
    """As ``under``, with a node that makes a number of the image."""

    def count(graph: Graph) -> None:
        graph["10"] = workflows._node("TestCount", image=["8", 0])

    return under(budget, change=count)


def foretold(family: str, share: float, text: bool) -> dict[str, Any]:
    """Bytes to the device in a warm prompt: ``predicted`` and ``measured`` by stage."""
    one = subject(family)
    budget = int(one.model.model_size() * share)
    cfg = 1.0 if one.clip is None else 4.0
    work = Work(
        workflows.EDGE, workflows.EDGE, steps=2, guided=cfg != 1, words=None if one.clip else 16
    )
    store = TraceCache(Path(mkdtemp()))
    parts = {"model": one.model, "clip": one.clip if text else None, "vae": one.vae}
    found = loaded_subject(work, **parts, store=store, attention="bare", workspace_factor=0)
    config, _ = MemoryLevelSelector().run("none", budget / GIB, "off")
    stages = prediction(found, config, COSTS).stages
    moved = under(budget, family=family, text=text)["moved"]
    nodes = {"denoise": ("7",), "decode": ("8",), **({"encode": TEXTS} if text else {})}
    return {
        "predicted": {name: it.moved_bytes for name, it in stages.items()},
        "measured": {name: sum(moved[node] for node in of) for name, of in nodes.items()},
    }

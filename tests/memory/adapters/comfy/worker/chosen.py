"""Prompts at level auto and under budgets: what was chosen, why, and what it took."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import torch
from executed import SIM, WATCH, Graph, done, fresh, run, runner
from lowtide.memory import learning, profiles, session, verified
from lowtide.memory.adapters.comfy import plan_choice, plan_foresight
from lowtide.memory.device import snapshot
from lowtide.memory.later import planning
from lowtide.memory.units import GIB
from workflows import text_to_image

_home = tempfile.TemporaryDirectory(prefix="lowtide-chosen-")
_texts: list[str] = []
_asked: list[int] = []


@contextmanager
def _listening() -> Iterator[None]:
    """Keep the text of every Optimize Pipeline that runs."""
    original = session.optimize_native

    def optimize(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        _texts.append(found.report.text())
        return found

    session.optimize_native = optimize
    try:
        yield
    finally:
        session.optimize_native = original


def _begin(cold: bool = False) -> None:
    """A device whose kernels need no room of their own, and a history that is empty.

    Unless ``cold``, traces are those that earlier calls recorded.
    """
    home = os.environ["LOWTIDE_HOME"] = tempfile.mkdtemp(dir=_home.name)
    if not cold:
        kept = Path(_home.name, "traces")
        kept.mkdir(exist_ok=True)
        Path(home, "traces").symlink_to(kept, target_is_directory=True)
    fresh()
    plan_choice.forget()
    _texts.clear()
    name, version = snapshot(mm.get_torch_device()).name, str(torch.__version__)
    bare = replace(profiles.known(name, version), workspace_factor=0.0)
    profiles._known[profiles.key_of(name, version)] = bare


def _graph(level: str, budget: float = 0.0, **more: Any) -> Graph:
    graph = text_to_image(level=level, **more)
    graph["2"]["inputs"]["budget_gb"] = budget
    graph["10"] = {"class_type": "LowtideVRAMMonitor", "inputs": {"anything": ["8", 0]}}
    return graph


def _edge(graph: Graph, edge: int) -> Graph:
    graph["6"]["inputs"] |= {"width": edge, "height": edge}
    return graph


def _after() -> dict[str, Any]:
    """What the last prompt left: the decision, its runs verified, its rows."""
    assert planning.finish(300) and learning.flush()
    rows = learning.history()._both(lambda table: table.all())
    return {
        "text": _texts[-1] if _texts else "",
        "optimised": "3" in WATCH.calls,
        "sampled": "7" in WATCH.calls,
        "runs": [it.to_dict() for it in verified.runs()],
        "monitor": session.monitor()[0],
        "rows": [(it.stage, it.level, it.outcome, it.predicted, it.measured) for it in rows],
    }


def prompts(family: str) -> list[dict[str, Any]]:
    """Prompts at auto: cold, again, known, again, another seed, another size; then by name."""
    _begin(cold=True)
    one, found = runner(), []
    with _listening():
        for edge, seed in ((64, 1), (64, 1), (64, 2), (64, 2), (64, 3), (96, 4)):
            done(one, _edge(_graph("auto", cleanup="pressure", seed=seed, family=family), edge))
            found.append(_after())
        for _ in range(2):
            done(one, _graph("balanced", cleanup="pressure", family=family))
            found.append(_after())
    return found


def ran_out() -> list[dict[str, Any]]:
    """At auto: a run that fits, one that runs out of memory, and the next."""
    _begin()
    one, found = runner(), []
    with _listening():
        for seed in range(4):
            graph = _graph("auto", cleanup="pressure", rescue="off", seed=seed)
            WATCH.before = _failing if seed == 2 else None
            run(one, graph)
            SIM.clear_fault()
            found.append(_after())
    return found


def _failing(node: str) -> None:
    if node == "7":
        SIM.fail_allocation(5)


def budget(level: str, share: float) -> dict[str, Any]:
    """Two prompts under a budget, a share of what NONE takes; the second is known."""
    _begin()
    one = runner()
    with _listening():
        done(one, _graph("auto (by VRAM size)", cleanup="always"))
        SIM.reset_peaks()
        done(one, _graph("none", cleanup="always", seed=2))
        whole = SIM.peak_allocated
        amount = round(whole * share / GIB, 3)
        for seed in (3, 4, 5):
            SIM.reset_peaks()
            done(one, _graph(level, amount, cleanup="always", seed=seed))
            after = _after()
    return {**after, "budget": int(amount * GIB), "peak": SIM.peak_allocated, "whole": whole}


def left_in_peace() -> dict[str, Any]:
    """At NONE without a budget, and on a device without an accelerator, nothing is predicted."""
    _begin()
    asked: list[int] = []
    assert plan_foresight.__name__ == plan_choice._PLANNER
    original = plan_choice._foresight
    plan_choice._foresight = lambda *args: asked.append(1) or original(*args)
    try:
        done(runner(), _graph("none"))
        at_none = len(asked)
        done(runner(), _graph("balanced"))
    finally:
        plan_choice._foresight = original
    return {"none": at_none, "balanced": len(asked), "waiting": len(plan_choice._pending)}


def cost() -> dict[str, Any]:
    """Seconds of a fingerprint and of a decision whose traces are known."""
    import time

    _begin()
    one = runner()
    with _listening():
        for seed in (1, 2):
            done(one, _graph("auto", cleanup="pressure", seed=seed))
            _after()
        spent = []
        for _ in range(5):
            started = time.perf_counter()
            plan_choice.fingerprint("3")
            spent.append(time.perf_counter() - started)
    return {"fingerprint": sorted(spent)[2], "text": _texts[-1]}

"""Each node's peak as the timeline has it, beside what the accelerator itself counted."""

from __future__ import annotations

from typing import Any

from executed import WATCH, done, fresh, held, runner
from lowtide.memory.adapters.comfy import executor as followed
from workflows import ALL, pipelines_in


def of(workflow: str, level: str, pipelines: str, pipeline: str) -> dict[str, Any]:
    """Rows of both figures for every node, in two runs from the same beginning.

    In the first the test counts around each node's call; in the second nobody but Lowtide touches
    the device's counters.
    """
    pipelines_in(pipelines, pipeline)
    graph = ALL[workflow](level=level)  # before the counting: it may make models
    followed_runs, left = [], []
    counted: dict[str, tuple[int, int]] = {}
    for counting in (True, False):
        fresh()
        followed.install()
        WATCH.counting = counting
        done(runner(), graph)
        if counting:
            counted = dict(WATCH.peaks)
        left.append(held())
        followed_runs.append(followed.timelines()[-1])
    fresh()
    parents = {it["node"]: it["parent"] for it in followed_runs[0]["nodes"]}
    total = dict(counted)
    for node, peaks in counted.items():
        parent = parents.get(node)
        while parent is not None:
            total[parent] = tuple(map(max, total[parent], peaks))
            parent = parents[parent]
    return {
        "counted": total,
        "whole": tuple(max(it[which] for it in counted.values()) for which in (0, 1)),
        "recorded": [_recorded(one) for one in followed_runs],
        "recorded whole": [(one["peak_allocated"], one["peak_reserved"]) for one in followed_runs],
        "steps": [
            {span["node"]: list(span["steps"]) for span in one["nodes"] if span["steps"]}
            for one in followed_runs
        ],
        "parents": parents,
        "left": left,
    }


def _recorded(timeline: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {
        span["node"]: (span["peak_allocated"], span["peak_reserved"]) for span in timeline["nodes"]
    }

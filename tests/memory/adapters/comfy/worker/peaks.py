"""Each node's peak as the timeline has it, beside what the accelerator itself counted."""

from __future__ import annotations

from typing import Any

from executed import WATCH, done, fresh, held, runner
from lowtide.memory.adapters.comfy import executor as followed
from workflows import ALL, pipelines_in


def of(workflow: str, level: str, pipelines: str, pipeline: str) -> dict[str, Any]:
    """Rows of both figures for every node, in two runs from the same beginning.

    In the first somebody resets torch's peaks before each node's call; in the second nobody but
    Lowtide touches them. What was counted is counted apart from them.
    """
    pipelines_in(pipelines, pipeline)
    graph = ALL[workflow](level=level)  # before the counting: it may make models
    followed_runs, left, counted = [], [], []
    for resetting in (True, False):
        fresh()
        followed.install()
        WATCH.counting, WATCH.resetting = True, resetting
        done(runner(), graph)
        counted.append(dict(WATCH.peaks))
        left.append(held())
        followed_runs.append(followed.timelines()[-1])
    fresh()
    parents = {it["node"]: it["parent"] for it in followed_runs[0]["nodes"]}
    return {
        "counted": [_with_parents(peaks, parents) for peaks in counted],
        "whole": [
            tuple(max(it[which] for it in peaks.values()) for which in (0, 1)) for peaks in counted
        ],
        "recorded": [_recorded(one) for one in followed_runs],
        "recorded whole": [(one["peak_allocated"], one["peak_reserved"]) for one in followed_runs],
        "steps": [
            {span["node"]: list(span["steps"]) for span in one["nodes"] if span["steps"]}
            for one in followed_runs
        ],
        "parents": parents,
        "left": left,
    }


def _with_parents(
    peaks: dict[str, tuple[int, int]], parents: dict[str, str | None]
) -> dict[str, tuple[int, int]]:
    total = dict(peaks)
    for node, found in peaks.items():
        parent = parents.get(node)
        while parent is not None:
            total[parent] = tuple(map(max, total[parent], found))
            parent = parents[parent]
    return total


def _recorded(timeline: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {
        span["node"]: (span["peak_allocated"], span["peak_reserved"]) for span in timeline["nodes"]
    }

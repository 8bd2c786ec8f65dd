"""Lowtide Fit Check in a graph: told before anything runs, passed through, and stopping."""

from __future__ import annotations

import json

import numpy as np
import pytest
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.fixtures import CHECKPOINT
from lowtide.tests.hosts.server import Graph, Server

pytestmark = [pytest.mark.host, pytest.mark.devices("npu"), pytest.mark.long]

CHECK, TABLE, JSON, CHART = "93", "94", "95", "96"
SIZE, STEPS = 128, 2


def checked(budget_gb: float = 0.0, action: str = "report", **more: object) -> Graph:
    """ComfyUI's own nodes with the check behind the loader, and its outputs shown."""
    graph = graphs.stock(CHECKPOINT, SIZE, STEPS)
    graph[CHECK] = {
        "class_type": "LowtideFitCheck",
        "inputs": {
            "width": 64,
            "height": 64,
            "batch_size": 1,
            "steps": STEPS,
            "cfg": 4.0,
            "budget_gb": budget_gb,
            "if_it_does_not_fit": action,
            "model": ["1", 0],
            "clip": ["1", 1],
            "vae": ["1", 2],
            "latent": ["4", 0],
            **more,
        },
    }
    graph["5"]["inputs"]["model"] = [CHECK, 0]
    for node in ("2", "3"):
        graph[node]["inputs"]["clip"] = [CHECK, 1]
    graph["6"]["inputs"]["vae"] = [CHECK, 2]
    graph[TABLE] = {"class_type": "PreviewAny", "inputs": {"source": [CHECK, 3]}}
    graph[JSON] = {"class_type": "PreviewAny", "inputs": {"source": [CHECK, 4]}}
    graph[CHART] = {"class_type": "PreviewImage", "inputs": {"images": [CHECK, 5]}}
    return graph


def test_it_tells_every_stage_at_every_level_and_changes_no_image(server: Server):
    plain = server.queue(graphs.stock(CHECKPOINT, SIZE, STEPS))
    graph = checked()
    del graph[CHART]  # an image of another size
    run = server.queue(graph)
    assert run.succeeded, run.error
    assert np.array_equal(server.images(run), server.images(plain))
    text, found = run.text(TABLE), json.loads(run.text(JSON))
    assert text.startswith(f"{SIZE} x {SIZE}, batch 1, {STEPS} steps"), "the latent's sizes"
    assert [row["name"] for row in found["rows"]] == ["none", "balanced", "aggressive", "ultra"]
    peaks = [row["peak_allocated_bytes"] for row in found["rows"]]
    assert peaks == sorted(peaks, reverse=True) and peaks[-1] > 0
    assert all(set(row["stages"]) == {"encode", "denoise", "decode"} for row in found["rows"])
    assert found["unknown"] == []


def test_a_budget_is_a_row_of_its_own(server: Server):
    run = server.queue(checked(1.0))
    assert run.succeeded, run.error
    found = json.loads(run.text(JSON))
    assert found["rows"][-1]["name"] == "the budget" and found["rows"][-1]["fits"]
    assert len(run.outputs[CHART]["images"]) == 1
    assert found["limit_bytes"] == 1 << 30 and found["fits"] is True


def test_the_largest_batch_is_said_where_all_is_known(server: Server):
    run = server.queue(checked(0.2))
    assert run.succeeded, run.error
    found = json.loads(run.text(JSON))
    largest = found["largest_batch"]
    assert largest >= 1
    assert f"The largest batch that is predicted to fit: {largest}" in run.text(TABLE)
    partly = checked(0.2)
    del partly[CHECK]["inputs"]["model"]
    partly["5"]["inputs"]["model"] = ["1", 0]
    without = server.queue(partly)
    assert json.loads(without.text(JSON))["largest_batch"] is None, "sampling is not known"
    assert "largest batch" not in without.text(TABLE)


def test_the_example_runs_and_draws_its_chart(server: Server):
    changes = {
        "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
        "EmptyLatentImage": {"width": SIZE, "height": SIZE},
        "KSampler": {"steps": STEPS},
    }
    run = server.queue(graphs.with_inputs(graphs.example("lowtide_fit_check"), changes))
    assert run.succeeded, run.error
    assert len(run.outputs["5"]["images"]) == 1, "the chart"
    assert len(run.outputs["11"]["images"]) == 1
    assert f"{SIZE} x {SIZE}, batch 1, 20 steps" in run.outputs["4"]["text"][0]


def test_it_stops_what_will_not_fit_before_anything_is_computed(server: Server):
    run = server.queue(checked(0.002, "stop"))
    assert not run.succeeded
    assert "more than the budget of 2.0 MB" in run.error
    assert "give at least" in run.error and "smaller" in run.error
    assert "5" not in run.messages("execution_error")[0]["executed"]
    again = server.queue(checked(0.002, "report"))
    assert again.succeeded, again.error
    assert json.loads(again.text(JSON))["fits"] is False
    assert server.queue(checked(1.0, "stop")).succeeded

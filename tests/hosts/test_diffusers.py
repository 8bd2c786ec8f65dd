"""The diffusers example workflow at every level: it runs, the image holds, the peaks fall."""

from __future__ import annotations

import numpy as np
import pytest
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.fixtures import PIPELINE
from lowtide.tests.hosts.measure import Outcome, difference, falling, measure
from lowtide.tests.hosts.server import Server

pytestmark = [pytest.mark.host, pytest.mark.long]

LEVELS = ("none", "balanced", "aggressive", "ultra")
# Largest and mean difference in steps of 255. Tiles of 64 pixels, the smallest there are, of a VAE
# with random weights, which reacts to a tile's edge more than a trained one; ultra adds FP8.
TOLERANCE = {"none": (0, 0.0), "balanced": (96, 14), "aggressive": (96, 14), "ultra": (112, 18)}

Outcomes = dict[str, Outcome]


@pytest.fixture(scope="session")
def outcomes(session_server: Server) -> Outcomes:
    graph = {level: graphs.diffusers(PIPELINE, level) for level in LEVELS}
    return {level: measure(session_server, graph[level]) for level in LEVELS}


@pytest.mark.parametrize("level", LEVELS)
def test_runs_and_says_what_was_applied(outcomes: Outcomes, level: str):
    run = outcomes[level].run
    assert run.succeeded, run.error
    assert outcomes[level].images.shape == (1, 128, 128, 3)
    assert level in run.text(graphs.REPORT).lower()


@pytest.mark.parametrize("level", LEVELS)
def test_the_image_holds(outcomes: Outcomes, level: str):
    reference = outcomes["none"].images
    assert reference.size and reference.std() > 5
    largest, mean = difference(outcomes[level].images, reference)
    most, most_mean = TOLERANCE[level]
    assert largest <= most and mean <= most_mean, (largest, mean)


@pytest.mark.devices("npu", "cuda")
def test_placement_changes_no_bit(session_server: Server):
    # One tile holds the whole picture, so that only where the weights are differs.
    images = []
    for level in LEVELS[:3]:
        outcome = measure(session_server, graphs.diffusers(PIPELINE, level, size=64))
        assert outcome.run.succeeded, outcome.run.error
        images.append(outcome.images)
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])


@pytest.mark.devices("npu", "cuda")
def test_peaks_fall_level_by_level(outcomes: Outcomes):
    peaks = {level: outcome.peak for level, outcome in outcomes.items()}
    assert peaks["balanced"] < peaks["none"], falling(peaks)
    assert peaks["ultra"] <= peaks["aggressive"] <= peaks["balanced"], falling(peaks)


@pytest.mark.devices("npu", "cuda")
def test_the_cleanup_node_leaves_nothing(outcomes: Outcomes):
    assert {level: it.left for level, it in outcomes.items()} == dict.fromkeys(LEVELS, (0, 0))


@pytest.mark.devices("npu", "cuda")
def test_a_pipeline_runs_again_after_the_cleanup_with_the_same_image(
    server: Server, outcomes: Outcomes
):
    graph = graphs.diffusers(PIPELINE, "balanced")
    server.queue(graph)
    graph = graphs.with_inputs(graph, {"LowtideGenerate": {"seed": 2}})
    other = server.queue(graph)
    graph = graphs.with_inputs(graph, {"LowtideGenerate": {"seed": 1}})
    again = server.queue(graph)
    assert other.succeeded and again.succeeded, other.error or again.error
    loader = graphs.node_of(graph, "LowtideLoadDiffusersPipeline")
    assert loader in again.cached
    assert not np.array_equal(server.images(other), outcomes["balanced"].images)
    assert np.array_equal(server.images(again), outcomes["balanced"].images)

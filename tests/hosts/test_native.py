"""The native example workflow at every level: it runs, the image holds, the peaks fall."""

from __future__ import annotations

import numpy as np
import pytest
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.fixtures import CHECKPOINT, CHECKPOINT_KL
from lowtide.tests.hosts.measure import MIB, Outcome, difference, falling, measure
from lowtide.tests.hosts.server import Server

pytestmark = pytest.mark.host

LEVELS = ("none", "balanced", "aggressive", "ultra")
# Relative L2 of the latents, by ULTRA's FP8 storage. On a CPU it stores nothing in FP8.
EIGHT_BITS = 0.04

Outcomes = dict[str, tuple[Outcome, np.ndarray]]


@pytest.fixture(scope="session")
def outcomes(session_server: Server) -> Outcomes:
    """Level -> what its run gave, and its latents; "stock" is the graph without Lowtide's nodes."""
    plain = graphs.bypassing(graphs.native(CHECKPOINT, "none"))
    todo = {"stock": plain, **{level: graphs.native(CHECKPOINT, level) for level in LEVELS}}
    found: Outcomes = {}
    for name, graph in todo.items():
        outcome = measure(session_server, graph)
        succeeded = outcome.run.succeeded
        latents = session_server.latents(outcome.run) if succeeded else np.empty((0,))
        found[name] = (outcome, latents)
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_runs_and_says_what_was_applied(outcomes: Outcomes, level: str):
    outcome, _ = outcomes[level]
    assert outcome.run.succeeded, outcome.run.error
    assert outcome.images.shape == (1, 128, 128, 3)
    assert level in outcome.run.text(graphs.REPORT).lower()


@pytest.mark.parametrize("level", LEVELS)
def test_placement_changes_no_bit(outcomes: Outcomes, level: str):
    stock, level_latents = outcomes["stock"][1], outcomes[level][1]
    assert stock.size
    if "+ fp8 storage" in outcomes[level][0].run.text(graphs.REPORT):
        assert level == "ultra"
        lost = np.linalg.norm(level_latents - stock) / np.linalg.norm(stock)
        assert 0 < lost < EIGHT_BITS, lost
    else:
        assert np.array_equal(level_latents, stock)


@pytest.mark.devices("npu", "cuda")
def test_ultra_stores_the_model_in_fp8(outcomes: Outcomes):
    assert "+ fp8 storage (model)" in outcomes["ultra"][0].run.text(graphs.REPORT)


def test_level_none_gives_the_stock_image(outcomes: Outcomes):
    assert np.array_equal(outcomes["none"][0].images, outcomes["stock"][0].images)


@pytest.mark.parametrize("level", ["balanced", "aggressive"])
def test_a_tiny_vae_is_not_cut(outcomes: Outcomes, level: str):
    assert np.array_equal(outcomes[level][0].images, outcomes["stock"][0].images)


@pytest.mark.long
@pytest.mark.devices("npu")
def test_a_full_vae_in_strips_gives_the_same_picture(server: Server):
    found = {}
    for level in ("none", "aggressive"):
        run = measure(server, graphs.native(CHECKPOINT_KL, level, size=192))
        assert run.run.succeeded, run.run.error
        found[level] = run.images
        if level == "aggressive":
            assert "exact vae tiling" in run.run.text(graphs.REPORT)
    largest, mean = difference(found["aggressive"], found["none"])
    assert largest <= 4 and mean <= 0.5, (largest, mean)  # bfloat16's own steps


@pytest.mark.devices("npu", "cuda")
def test_peaks_fall_level_by_level(outcomes: Outcomes):
    peaks = {name: outcome.peak for name, (outcome, _) in outcomes.items()}
    assert peaks["none"] <= peaks["stock"], falling(peaks)
    assert peaks["balanced"] < peaks["none"], falling(peaks)
    assert peaks["ultra"] <= peaks["aggressive"] <= peaks["balanced"], falling(peaks)
    # Streaming is what the two last are for: most of the weights never lie there together.
    assert peaks["aggressive"] < peaks["balanced"] / 2, falling(peaks)


def test_the_cleanup_node_leaves_nothing(outcomes: Outcomes, session_server: Server):
    for name, (outcome, _) in outcomes.items():
        assert outcome.figures["models"] == [], name
        if session_server.device != "cpu":
            assert outcome.left == (0, 0), name


@pytest.mark.devices("npu", "cuda")
@pytest.mark.parametrize("budget_mib", [150, 220])
def test_a_budget_is_kept_without_changing_a_bit(
    server: Server, outcomes: Outcomes, budget_mib: int
):
    graph = graphs.native(CHECKPOINT, "none", budget_gb=budget_mib / 1024)
    outcome = measure(server, graph)
    assert outcome.run.succeeded, outcome.run.error
    assert outcome.peak <= budget_mib * MIB, outcome.peak / MIB
    if budget_mib == 220:
        # And used: what fits stays, so that fewer bytes move than at aggressive.
        moved = [it.figures["traffic"]["h2d"] for it in (outcome, outcomes["aggressive"][0])]
        assert moved[0] < moved[1], moved
    assert np.array_equal(server.latents(outcome.run), outcomes["stock"][1])

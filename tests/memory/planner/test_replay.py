"""Placements of a trace made by hand, whose peaks can be counted on paper."""

from __future__ import annotations

import pytest
from lowtide.memory.planner.loader import Loader, kept
from lowtide.memory.planner.placement import BLOCK, LEAF, PARENT, Placement, layout
from lowtide.memory.planner.predict import Turn, predict
from lowtide.tests.memory.planner.made import MIB, made

NONE = frozenset()


def peak(placement, factor=0.0, **sizes):
    stage = predict(
        [Turn("model", "denoise", made(**sizes), placement)], workspace_factor=factor
    ).stages["denoise"]
    return stage.peak_allocated_bytes, stage.moved_bytes


def test_everything_resident():
    # Three weights; input, the layer's own input and output. The whole is moved once.
    assert peak(Placement()) == (3 * 4 * MIB + 3 * 2 * MIB, 12 * MIB)


def test_a_workspace_lasts_for_its_operation():
    assert peak(Placement(), 1.0)[0] == peak(Placement())[0] + 2 * MIB
    assert peak(Placement(), 0.5)[0] == peak(Placement())[0] + MIB


def test_leaf_by_leaf_one_weight_is_there():
    assert peak(Placement(NONE)) == (4 * MIB + 3 * 2 * MIB, 12 * MIB)


def test_what_is_resident_is_not_moved_again():
    turn = Turn("model", "denoise", made(), Placement(frozenset({0})), calls=5)
    stage = predict([turn], workspace_factor=0).stages["denoise"]
    assert stage.peak_allocated_bytes == 2 * 4 * MIB + 3 * 2 * MIB
    assert stage.moved_bytes == 4 * MIB + 5 * 8 * MIB


def test_units_of_blocks_and_parents():
    trace = made()
    assert set(layout(trace, Placement(NONE, LEAF)).units) == {1, 4, 5}
    assert set(layout(trace, Placement(NONE, BLOCK)).units) == {0, 3}
    assert set(layout(trace, Placement(NONE, PARENT)).units) == {1, 4, 5}
    # What is no block of the list stays for the whole call, with one block beside it.
    assert peak(Placement(NONE, BLOCK))[0] == 3 * 4 * MIB + 3 * 2 * MIB


def test_fp8_halves_what_is_stored_and_casts_a_layer_at_a_time():
    # 3 x 2 MiB of codes; when a layer is done its codes are made beside the cast weight (4).
    assert peak(Placement(fp8=True))[0] == 3 * 2 * MIB + 4 * MIB + 3 * 2 * MIB
    # With more computed inside the layer, it is the codes beside the cast weight that count.
    assert peak(Placement(fp8=True), 1.0)[0] == 2 * 2 * MIB + 4 * MIB + 4 * 2 * MIB
    assert peak(Placement(fp8=True, keeps_codes=True), 1.0)[0] == 3 * 2 * MIB + 4 * MIB + 8 * MIB
    assert peak(Placement(NONE, fp8=True)) == (4 * MIB + 3 * 2 * MIB, 6 * MIB)


def test_fp8_spares_what_a_pattern_names():
    assert peak(Placement(fp8=True, skip=("^last$",)))[1] == 2 * 2 * MIB + 4 * MIB


def test_buffers_stay_beside_what_is_resident():
    assert peak(Placement(frozenset({0}), buffers=2))[0] == 4 * MIB + 2 * 4 * MIB + 3 * 2 * MIB


def test_the_cause_is_named():
    stage = predict([Turn("model", "denoise", made(), Placement())]).stages["denoise"]
    assert (stage.component, stage.operation, stage.module) == ("model", "addmm", "blocks.0.inner")


def test_a_component_that_lingers_leaves_with_the_next_but_one():
    turns = [
        Turn("a", "encode", made(weight=8 * MIB), Placement(), lingers=True),
        Turn("b", "encode", made(weight=4 * MIB), Placement(), lingers=True, after="a"),
        Turn("a", "encode", made(weight=8 * MIB), Placement(), lingers=True),
        Turn("b", "encode", made(weight=4 * MIB), Placement(), lingers=True, after="a"),
        Turn("c", "denoise", made(weight=MIB), Placement(), after="b"),
    ]
    found = predict(turns, workspace_factor=0)
    assert found.stages["encode"].peak_allocated_bytes == 3 * (8 + 4) * MIB + 3 * 2 * MIB
    assert found.stages["encode"].moved_bytes == 3 * (8 + 4 + 8) * MIB
    # The last stage begins with what is about to leave.
    assert found.stages["denoise"].peak_allocated_bytes == 3 * 4 * MIB
    assert found.stages["denoise"].operation == "weights leaving"


def test_what_stays_is_there_in_every_stage():
    stays = Placement(stays=True)
    turns = [Turn("a", "encode", made(), stays), Turn("b", "decode", made(weight=MIB), stays)]
    found = predict(turns, workspace_factor=0, context_bytes=7)
    assert {s.peak_allocated_bytes for s in found.stages.values()} == {15 * MIB + 6 * MIB}
    assert found.device_peak == found.peak_reserved + 7
    assert found.moved_bytes == 0


@pytest.mark.parametrize("most", [0, 4 * MIB - 1, 4 * MIB + 1, 9 * MIB, 12 * MIB])
def test_the_largest_leaves_within_a_share(most):
    stored = [weight.nbytes for weight in made().weights]
    assert len(kept(made(), stored, most, Loader())) == most // (4 * MIB)
    # Strictly less than the limit, as the core compares; all of them where all fit.
    assert len(kept(made(), stored, 8 * MIB, Loader())) == 1


@pytest.mark.parametrize(
    ("most", "streams", "count"),
    [(4 * MIB + 1, 0, 1), (8 * MIB + 1, 0, 1), (8 * MIB + 1, 2, 0), (12 * MIB, 2, 3)],
)
def test_a_loader_that_reserves_keeps_less_than_the_cap(most, streams, count):
    # Beside each leaf it keeps room for that leaf and the next ones, of the model's size at most.
    stored = [weight.nbytes for weight in made().weights]
    assert len(kept(made(), stored, most, Loader(streams, reserves=True))) == count

"""Predictions for models loaded in each ComfyUI found, on the simulated accelerator."""

from __future__ import annotations

import pytest
from lowtide.tests.hosts.comfyui import Installation, survey
from lowtide.tests.memory.adapters.comfy.hosted import hosted

INSTALLATIONS, REFUSED = survey()
PATIENCE = 1.5
"""Seconds the first question may take, of which the source itself waits a quarter."""
QUICK = 0.3
"""Seconds of a prediction whose traces are known, on a machine that is busy."""

pytestmark = [
    pytest.mark.host,
    pytest.mark.long,
    pytest.mark.slow,
    pytest.mark.skipif(not INSTALLATIONS, reason="; ".join(REFUSED)),
    pytest.mark.parametrize("installation", INSTALLATIONS or [None], ids=str),
]


def test_a_model_is_traced_as_its_loader_made_it_whatever_was_done_to_it(
    installation: Installation,
) -> None:
    found = hosted(installation, "npu", "plans").ask("planned", "states", shape="sd15")
    assert len(found["states"]) == 4
    assert [state for state, same in found["states"].items() if not same] == []
    assert found["changed"] == [] and found["left"] == []
    assert found["seconds"] < QUICK


def test_it_may_be_asked_while_a_prompt_runs(installation: Installation) -> None:
    found = hosted(installation, "npu", "plans").ask("planned", "in_a_thread", shape="sd15")
    assert found["same"] and all(found["same"])
    # Where the prompt exchanges a layer in the very moment it may be refused, and is never wrong.
    assert len(found["refused"]) <= len(found["same"])
    assert found["peaks"][0] == found["peaks"][1]
    assert found["changed"] == []


def test_what_cannot_be_predicted_is_said(installation: Installation) -> None:
    found = hosted(installation, "npu", "plans").ask("planned", "refusals")
    assert "quantised as Codes" in found["kind"]
    assert "plug in a MODEL, a CLIP or a VAE" in found["none"]
    assert "`clip` is a ModelPatcher; plug in a CLIP" in found["wrong"]


def test_the_overlays_fit_check_is_told_and_never_waits_long(installation: Installation) -> None:
    found = hosted(installation, "npu", "plans").ask("planned", "as_a_source")
    for name in ("other", "gone"):
        assert found.pop(name)["answer"] is None
    for name, node in found.items():
        assert node["first"] < PATIENCE, (name, node)
        assert node["again"] < 0.05, (name, node)
        need, why = node["answer"]
        assert abs(need - node["taken"]) <= 0.02 * node["taken"], (name, node)
        assert why.startswith("predicted for "), why
    assert found["capped"]["answer"][0] < found["sample"]["answer"][0] / 3

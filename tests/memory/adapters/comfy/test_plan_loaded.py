"""Predictions for models loaded in each ComfyUI found, on the simulated accelerator."""

from __future__ import annotations

import pytest
from lowtide.tests.hosts.comfyui import Installation, survey
from lowtide.tests.memory.adapters.comfy.hosted import hosted

INSTALLATIONS, REFUSED = survey()
QUICK = 0.3
"""Seconds of a prediction whose traces are known, on a machine that is busy."""

pytestmark = [
    pytest.mark.host,
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
    assert found["refused"] == []
    assert found["peaks"][0] == found["peaks"][1]
    assert found["changed"] == []


def test_what_cannot_be_predicted_is_said(installation: Installation) -> None:
    found = hosted(installation, "npu", "plans").ask("planned", "refusals")
    assert "quantised as Codes" in found["kind"]
    assert "plug in a MODEL, a CLIP or a VAE" in found["none"]
    assert "`clip` is a ModelPatcher; plug in a CLIP" in found["wrong"]

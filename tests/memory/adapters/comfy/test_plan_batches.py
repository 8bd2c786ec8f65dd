"""The largest batch of ComfyUI's own models: predicted, and run, on the simulated accelerator."""

from __future__ import annotations

import pytest
from lowtide.tests.hosts.comfyui import Installation, survey
from lowtide.tests.memory.adapters.comfy.hosted import hosted

INSTALLATIONS, REFUSED = survey()
SHAPES = ("sd15", "flux")

pytestmark = [
    pytest.mark.host,
    pytest.mark.long,
    pytest.mark.slow,
    pytest.mark.skipif(not INSTALLATIONS, reason="; ".join(REFUSED)),
    pytest.mark.parametrize("installation", INSTALLATIONS or [None], ids=str),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_traces_of_two_batches_give_those_of_any(installation: Installation, shape: str) -> None:
    found = hosted(installation, "npu", "plans").ask("batches", "on_the_line", shape=shape, batch=5)
    assert [name for name, same in found["same"].items() if not same] == []
    assert len(found["same"]) >= 4 and found["recorded"] == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_batch_keeps_the_budget_and_one_more_does_not(
    installation: Installation, shape: str
) -> None:
    found = hosted(installation, "npu", "plans").ask("batches", "budget", shape=shape, images=3)
    assert found["largest"] == 3 and found["careful"] < 3, found
    fits, over = found["runs"]
    assert fits["refused"] is None and len(fits["peaks"]) == 2, found
    assert max(fits["peaks"]) <= found["budget"], found
    assert over["refused"] is not None or max(over["peaks"]) > found["budget"], found


def test_without_a_budget_it_is_what_the_device_has(installation: Installation) -> None:
    found = hosted(installation, "npu", "plans").ask("batches", "device", shape="sd15", images=4)
    assert found["largest"] == 4 and found["none"] == 0
    assert found["aggressive"] >= 4
    assert abs(found["reserved"] - found["free"]) <= 20 << 20, found

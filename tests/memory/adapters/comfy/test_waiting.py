"""Under a budget a text encoder comes once for the texts of a prompt, and not at the levels that
have every component leave when its node is done."""

from __future__ import annotations

from typing import Any

import pytest
from lowtide.tests.hosts.comfyui import Installation, survey
from lowtide.tests.memory.adapters.comfy.hosted import hosted

INSTALLATIONS, REFUSED = survey()
MIB = 1 << 20

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not INSTALLATIONS, reason="; ".join(REFUSED)),
    pytest.mark.parametrize("installation", INSTALLATIONS or [None], ids=str),
]


def texts(installation: Installation, level: str, budget: int, **more: Any) -> dict[str, Any]:
    found = hosted(installation, "npu", "prompts").ask(
        "waiting", "between_texts", level=level, budget_mib=budget, **more
    )
    assert found["peak"] <= budget * MIB
    assert found["left"] == 0
    return found


@pytest.mark.parametrize("budget", [40, 90])
def test_it_waits_for_the_second_text(installation: Installation, budget: int) -> None:
    found = texts(installation, "none", budget)
    first, second = found["moved"]
    assert first > 16 * MIB and second < MIB
    assert found["there"][0] > 16 * MIB and found["there"][1] == 0


def test_at_a_level_of_offload_it_leaves_after_each(installation: Installation) -> None:
    found = texts(installation, "balanced", 90)
    assert min(found["moved"]) > 16 * MIB
    assert found["there"] == [0, 0]


def test_a_prompt_that_is_stopped_leaves_none_waiting(installation: Installation) -> None:
    found = texts(installation, "none", 90, stop=True)
    assert found["there"][0] > 16 * MIB

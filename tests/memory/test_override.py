"""An override is given to runs that begin after it, and to those alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from lowtide.memory import override, session
from lowtide.memory.errors import ConfigError
from lowtide.memory.units import GIB


@pytest.fixture(autouse=True)
def nothing_set() -> Iterator[None]:
    yield
    override.set_next(None, None)
    override.begin_run()


def test_it_is_in_force_from_the_next_run_on() -> None:
    override.set_next("ultra", 2.5)
    assert override.next_runs().to_dict() == {"level": "ultra", "budget_gb": 2.5}
    assert not override.in_force()
    assert override.begin_run() == override.in_force() == override.next_runs()
    override.set_next(None, None)
    assert override.in_force().level == "ultra"
    assert not override.begin_run()


@pytest.mark.parametrize("level", ["auto", "fastest", "extreme"])
def test_a_level_no_run_can_have_is_refused(level: str) -> None:
    with pytest.raises(ConfigError, match=level):
        override.set_next(level, None)
    assert not override.next_runs()


@pytest.mark.parametrize("budget", [0, -1.0, 1025.0, float("nan"), float("inf")])
def test_a_budget_that_cannot_be_kept_is_refused(budget: float) -> None:
    with pytest.raises(ConfigError, match="more than 0 and at most 1024 GB"):
        override.set_next(None, budget)


def test_the_selector_hands_it_out_and_says_so(accelerator: Any) -> None:
    accelerator(capacity="8G")
    plain, text = session.choose("none", 4.0, "off")
    before = session.detection_fingerprint("none")
    assert "Overlay" not in text
    override.set_next("aggressive", None)
    assert session.detection_fingerprint("none") == before, "not in the middle of a run"
    assert session.choose("none", 4.0, "off")[0] == plain

    override.begin_run()
    config, text = session.choose("none", 4.0, "off")
    assert (config.level.value, config.budget_bytes) == ("aggressive", 4 * GIB)
    assert (
        "Overlay: level aggressive in place of this node's own (level none, 4 GB)"
        in text.splitlines()
    )
    changed = session.detection_fingerprint("none")
    assert changed != before

    override.set_next(None, 2.0)
    override.begin_run()
    config, text = session.choose("none", 4.0, "off")
    assert (config.level.value, config.budget_bytes) == ("none", 2 * GIB)
    assert len({before, changed, session.detection_fingerprint("none")}) == 3

    override.set_next(None, None)
    override.begin_run()
    assert session.detection_fingerprint("none") == before

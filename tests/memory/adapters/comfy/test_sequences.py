"""Whatever is done to a model, and in whatever order, its pictures are stock ComfyUI's.

hypothesis draws what is done; it is played inside ComfyUI (``worker/sequences.py``). Each ComfyUI
and device plays sequences of its own, the same in every run. LOWTIDE_TEST_SEQUENCES: how many.
"""

from __future__ import annotations

import os
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from lowtide.tests.hosts.comfyui import Installation, survey
from lowtide.tests.memory.adapters.comfy.hosted import Hosted, hosted

COUNT = int(os.environ.get("LOWTIDE_TEST_SEQUENCES", "8"))
LENGTH = 12
INSTALLATIONS, REFUSED = survey()

Operation = dict[str, Any]

numbers = st.integers(0, 2)


def _operation(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Operation]:
    return st.fixed_dictionaries({"do": st.just(name), **arguments})


samples = _operation("sample", number=numbers)
budgets = _operation(
    "set_budget",
    level=st.sampled_from(("none", "balanced", "aggressive")),
    share=st.sampled_from((0.5, 0.8, 0.3, 1.2, None)),
)
loras = _operation(
    "add_lora",
    kind=st.integers(1, 5),
    strength=st.sampled_from((1.0, 0.5)),
    first=st.booleans(),
)
squeezes = _operation("squeeze", free=st.sampled_from((1290, 1255, 1240, 1150)))
# The first are the simplest: what fails shrinks towards them.
operations = st.one_of(
    budgets,
    loras,
    squeezes,
    _operation("release"),
    _operation("remove_lora", index=st.integers(0, 3)),
    _operation("set_fp8", on=st.booleans()),
    _operation("clone"),
    _operation("unload"),
    _operation("original", number=numbers),
    _operation("other_loads"),
    _operation("other_samples", number=numbers),
    _operation("forget"),
)
# Most of what is done is looked at before the next thing is done.
steps = st.tuples(
    operations, st.lists(samples, min_size=0, max_size=1) | samples.map(lambda it: [it])
)
sequences = st.builds(
    lambda start, lora, drawn, last: [
        start,
        *lora,
        *(one for first, then in drawn for one in (first, *then)),
        last,
    ],
    budgets,
    st.lists(loras, max_size=2),
    st.lists(steps, min_size=2, max_size=LENGTH // 2),
    samples,
)


@pytest.mark.host
@pytest.mark.skipif(not INSTALLATIONS, reason="; ".join(REFUSED))
@pytest.mark.parametrize("installation", INSTALLATIONS or [None], ids=str)
@pytest.mark.parametrize("place", ("npu", pytest.param("cuda", marks=pytest.mark.long)))
def test_every_picture_is_the_expected_one(installation: Installation, place: str) -> None:
    # The process is asked for at each example, for a failing one may have ended it.
    @seed(zlib.crc32(f"{installation} {place}".encode()))
    @settings(
        max_examples=COUNT,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(shape=st.sampled_from(("flux", "sd15")), drawn=sequences)
    def play(shape: str, drawn: list[Operation]) -> None:
        check(hosted(installation, place), shape, drawn)

    play()


def check(process: Hosted, shape: str, drawn: list[Operation]) -> None:
    """Plays one sequence and raises for the first step that is wrong."""
    outcome = process.ask("sequences", "play", shape=shape, operations=drawn)
    for operation, step in zip(drawn, outcome["steps"], strict=True):
        if step is None or "refused" in step:
            continue
        assert step["difference"] in (None, 0.0), (operation, step)
        budget = step.get("budget")
        if budget is not None:
            assert step["resident"] <= budget, (operation, step)
            assert step["peak"] is None or step["peak"] <= budget, (operation, step)
    for found in (outcome, outcome["other"]):
        assert (found["changed"], found["leftovers"], found["left"]) == ([], [], 0)

"""Level auto and budgets in real ComfyUI: chosen by prediction, verified by the run."""

from __future__ import annotations

import re
from typing import Any

import pytest
from lowtide.tests.hosts.comfyui import survey
from lowtide.tests.memory.adapters.comfy.hosted import hosted

INSTALLATIONS, REFUSED = survey()
STAGES = {"text_encoding", "denoising", "decoding"}

pytestmark = [
    pytest.mark.host,
    pytest.mark.long,
    pytest.mark.skipif(not INSTALLATIONS, reason="; ".join(REFUSED)),
    pytest.mark.parametrize("installation", INSTALLATIONS or [None], ids=str),
]


def ask(installation: Any, function: str, **arguments: Any) -> Any:
    return hosted(installation, "npu", "chosen").ask("chosen", function, **arguments)


def verified(after: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {it["stage"]: it for run in after["runs"] for it in run["stages"]}


def test_auto_is_predicted_from_the_second_prompt_on(installation: Any) -> None:
    found = ask(installation, "prompts", family="sd15")
    cold, first, known, same, seed, other, named, again = found
    assert (
        "chosen by the device's memory, not by prediction: it has not been traced" in cold["text"]
    )
    assert cold["text"].startswith("Level ultra on npu:0"), "a device of 4 GB"
    assert not first["optimised"], "a graph that did not change runs nothing"
    assert known["optimised"] and known["text"].startswith("Level none on npu:0")
    assert re.search(
        r"none is the fastest plan that fits: [\d.]+ MB at the peak, [\d.]+ GB to use "
        r"\(predicted in \d+ ms\), for 64 x 64 pixels",
        known["text"],
    )
    stages = verified(known)
    assert set(stages) == STAGES
    for stage in stages.values():
        assert stage["predicted"] and stage["measured"]
    assert abs(stages["denoising"]["error"]) < 0.25, stages
    assert "Predicted and measured:" in known["monitor"]
    foretold = [row for row in known["rows"] if row[3] is not None]
    assert {row[0] for row in foretold} == STAGES and {row[1] for row in foretold} == {"none"}
    assert not same["optimised"] and not same["sampled"], "nothing changed: all of it is cached"
    assert seed["sampled"] and not seed["optimised"], "what was chosen still fits"
    assert other["optimised"], "another size is another question"
    assert named["text"].startswith("Level balanced on ") and "fastest" not in named["text"]
    assert not again["optimised"] and not again["sampled"]


def test_a_level_that_ran_out_is_not_chosen_again(installation: Any) -> None:
    _, fits, failed, after = ask(installation, "ran_out")
    assert fits["text"].startswith("Level none on ")
    assert not failed["optimised"]
    assert ["denoising", "none", "out of memory"] in [row[:3] for row in failed["rows"]]
    assert after["optimised"] and after["text"].startswith("Level balanced on ")
    assert "none ran out of memory at this size before" in after["text"]
    assert "fits" in {row[2] for row in after["rows"] if row[1] == "balanced"}


@pytest.mark.parametrize("level", ["auto", "none"])
def test_a_budget_is_kept_and_said_to_be(installation: Any, level: str) -> None:
    found = ask(installation, "budget", level=level, share=0.6)
    assert found["peak"] <= found["budget"] < found["whole"]
    assert "budget of " in found["monitor"] and ": kept (" in found["monitor"]
    assert "exceeded" not in found["monitor"]
    stages = verified(found)
    assert all(it["measured"] <= found["budget"] for it in stages.values())
    assert {"denoising", "decoding"} <= set(stages), "the prompt's words are cached"
    assert all(it["predicted"] <= found["budget"] for it in stages.values()), stages


def test_level_none_is_left_in_peace(installation: Any) -> None:
    assert ask(installation, "left_in_peace") == {"none": 0, "balanced": 1, "waiting": 0}


def test_asking_again_costs_milliseconds(installation: Any) -> None:
    found = ask(installation, "cost")
    print(found)
    assert found["fingerprint"] < 0.05
    said = re.search(r"predicted in (\d+) ms", found["text"])
    assert said is not None and int(said[1]) < 2000

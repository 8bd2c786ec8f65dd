"""A report says what is in force and what is not, and groups what is said twice."""

from __future__ import annotations

import json

from lowtide.memory.levels import OptimizationLevel
from lowtide.memory.report import OptimizationReport
from lowtide.memory.strategies.base import Applied, Skipped


def nothing() -> None:
    """No undo."""


ENTRIES = (
    Applied("component offload", "text_encoder", "on cuda:0 for its turn", nothing),
    Skipped("attention", "unet", "nothing to save"),
    Applied("component offload", "unet", "on cuda:0 for its turn", nothing),
    Applied("component offload", "vae", "stays", nothing),
    Skipped("attention", "controlnet", "nothing to save"),
)
REPORT = OptimizationReport(OptimizationLevel.BALANCED, "cuda:0", ENTRIES, ["a note"])


def test_equal_outcomes_share_a_line_in_the_order_of_application() -> None:
    assert REPORT.text().splitlines() == [
        "Level balanced on cuda:0",
        "a note",
        "+ component offload (text_encoder, unet): on cuda:0 for its turn",
        "+ component offload (vae): stays",
        "- attention (unet, controlnet): nothing to save",
    ]


def test_applied_and_skipped_are_told_apart() -> None:
    assert [entry.component for entry in REPORT.applied] == ["text_encoder", "unet", "vae"]
    assert [entry.component for entry in REPORT.skipped] == ["unet", "controlnet"]


def test_an_empty_report_says_so() -> None:
    report = OptimizationReport(OptimizationLevel.NONE, "cpu", [])
    assert report.text() == "Level none on cpu\nnothing to do"


def test_it_is_plain_json() -> None:
    values = json.loads(json.dumps(REPORT.to_dict()))
    assert (values["level"], values["device"], values["notes"]) == (
        "balanced",
        "cuda:0",
        ["a note"],
    )
    assert values["applied"][0] == {
        "strategy": "component offload",
        "component": "text_encoder",
        "detail": "on cuda:0 for its turn",
    }
    assert values["skipped"][1] == {
        "strategy": "attention",
        "component": "controlnet",
        "reason": "nothing to save",
    }

"""What a profile may hold, and the published figures that stand in for measured ones."""

from __future__ import annotations

import dataclasses
import json

import pytest
from lowtide.memory.errors import ConfigError
from lowtide.memory.profile import DeviceProfile
from lowtide.memory.profile_published import CARDS, assumed, published

MADE = DeviceProfile("card", 25e9, 12e9, 1e14, 9e11, 450 << 20, 1.0, True, "measured here")


def test_a_profile_survives_json() -> None:
    assert DeviceProfile.from_dict(json.loads(json.dumps(MADE.to_dict()))) == MADE
    assert "measured here" in MADE.text() and "100 TFLOP/s" in MADE.text()


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "fast", True, None])
@pytest.mark.parametrize("field", ["h2d_pinned", "h2d_pageable", "flops", "bandwidth"])
def test_a_rate_is_a_finite_number_above_nothing(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"`{field}`"):
        dataclasses.replace(MADE, **{field: value})


@pytest.mark.parametrize(
    "change", [{"context_bytes": -1}, {"name": 3}, {"measured": "no"}, {"more": 1}]
)
def test_what_is_no_profile_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        DeviceProfile.from_dict({**MADE.to_dict(), **change})
    less = MADE.to_dict()
    del less["source"]
    with pytest.raises(ConfigError, match="no device profile"):
        DeviceProfile.from_dict(less)


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA GeForce RTX 3060", "RTX 3060"),
        ("NVIDIA GeForce RTX 3060 Ti", "RTX 3060 Ti"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("Tesla T4", "T4"),
        ("AMD Radeon RX 7900 XTX", "RX 7900 XTX"),
        ("Apple M2 Max", "Apple M2 Max"),
        ("Apple M1", "Apple M1"),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4070 SUPER", None),
        ("NVIDIA GeForce RTX 5090 D", None),
        ("AMD Radeon RX 7900 XT", None),
        ("NVIDIA T400", None),
        ("Apple M4 Max", None),
        ("", None),
    ],
)
def test_which_card_a_name_means(name: str, card: str | None) -> None:
    found = published(name)
    assert (found is None) == (card is None)
    if found is not None:
        assert card is not None and card in found.source
        assert found.flops < CARDS[card].tflops * 1e12 and not found.measured
        assert f"the {card}," in found.source


def test_every_device_has_figures_that_say_what_they_are() -> None:
    unknown, apple = assumed("Some GPU"), assumed("Apple M4 Max")
    for profile in (unknown, apple, assumed("RTX 4080"), *map(assumed, CARDS)):
        assert not profile.measured and profile.source
        assert profile.h2d_pageable <= profile.h2d_pinned < profile.bandwidth
    assert "assumed" in unknown.source and unknown.context_bytes > 0
    assert "assumed" in apple.source and apple.context_bytes == 0, "it shares the host's memory"
    assert assumed("RTX 4080").source == published("RTX 4080").source

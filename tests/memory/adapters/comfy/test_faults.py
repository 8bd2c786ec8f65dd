"""A whole prompt, out of memory at one allocation after the other, in every ComfyUI.

Two kinds of fault: an allocation fails once though there is memory, and from an allocation on the
device is so small that only a streamed model fits. By default 200 allocations, spread evenly over
the prompt; LOWTIDE_TEST_FAULTS=all takes every one, with each kind of fault.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from lowtide.memory.rescue import TRIES
from lowtide.tests.hosts.comfyui import Installation, survey
from lowtide.tests.memory.adapters.comfy.hosted import hosted

INSTALLATIONS, REFUSED = survey()
EVERY = os.environ.get("LOWTIDE_TEST_FAULTS") == "all"
PROMPT = {"edge": 32}
SMALL = 26 << 20
"""Bytes of a device on which AGGRESSIVE finishes the prompt, and nothing that keeps the model."""
SEGMENT = 2 << 20
SHARE = 0.95
"""Part of the prompts that must finish with rescue on."""
CLOSE = 2 / 255
"""Largest difference of pixels where the picture was decoded, or patched, another way."""


@dataclass(frozen=True)
class Kind:
    name: str
    count: int
    rescue: str
    cleanup: str
    capacity: int | None = None


KINDS = (
    Kind("once, always", 70, "on", "always"),
    Kind("once, pressure", 40, "on", "pressure"),
    Kind("small, always", 50, "on", "always", SMALL),
    Kind("small, pressure", 20, "on", "pressure", SMALL),
    Kind("once, no rescue", 20, "off", "always"),
)


def spread(total: int, count: int, shift: float) -> list[int]:
    """``count`` of the numbers 1 to ``total``, evenly, a part of a step further on."""
    if EVERY or count >= total:
        return list(range(1, total + 1))
    return [1 + int((it + shift) * total / count) for it in range(count)]


@pytest.mark.long
@pytest.mark.host
@pytest.mark.skipif(not INSTALLATIONS, reason="; ".join(REFUSED))
@pytest.mark.parametrize("installation", INSTALLATIONS or [None], ids=str)
def test_a_prompt_survives_running_out_of_memory_anywhere(
    installation: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    process = hosted(installation, "npu", "faults")
    total = process.ask("faults", "undisturbed", cleanup="always", **PROMPT)["allocations"]
    lines, wrong, tried = [], [], 0
    for number, kind in enumerate(KINDS):
        ks = spread(total, kind.count, number / len(KINDS))
        options = {"rescue": kind.rescue, "cleanup": kind.cleanup, "capacity": kind.capacity}
        started = time.perf_counter()
        found = process.ask("faults", "faults", ks=ks, **options, **PROMPT)
        seconds = time.perf_counter() - started
        tried += len(found)
        wrong += [(kind.name, fault, one) for one in found for fault in faults(kind, one)]
        finished = [it for it in found if it["succeeded"]]
        lines.append(f"{summary(kind, found)}; {seconds:.0f} s")
        if kind.rescue == "on":
            assert len(finished) >= SHARE * len(found), (lines, failed(found))
    undone = process.ask("faults", "undone")
    with capsys.disabled():
        print(f"\nComfyUI {installation}: {total} allocations, {tried} prompts with a fault")
        print("\n".join(lines))
    assert not wrong, (len(wrong), wrong[:3])
    assert undone == {"changed": [], "leftovers": []}


def faults(kind: Kind, one: dict[str, Any]) -> list[str]:
    """What is wrong after one prompt, whether it finished or not."""
    found = []
    if one["ooms"] < 1:
        found.append("nothing failed")
    if one["left"] != [0, 0] or (kind.cleanup == "always" and one["above"] != [0, 0]):
        found.append("memory stays")
    allocated, reserved = one["above"]
    if allocated > 0 or reserved > SEGMENT:
        found.append("more memory is taken than after the undisturbed prompt")
    if one["succeeded"] and kind.rescue == "on" and min(one["differences"]) > CLOSE:
        found.append("another image")
    if len(one["attempts"]) > 3 * TRIES:
        found.append("too many tries")
    if not one["succeeded"] and kind.rescue == "on" and "OutOfMemory" not in one["error"]:
        found.append("another error")
    if kind.rescue == "off" and one["attempts"]:
        found.append("tried though it was not asked to")
    return found


def failed(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [it for it in found if not it["succeeded"]][:3]


def summary(kind: Kind, found: list[dict[str, Any]]) -> str:
    """One line: how many finished, with which images, by which rungs."""
    rungs = Counter(one["attempts"][-1][1] if one["attempts"] else "none" for one in found)
    finished = [min(it["differences"]) for it in found if it["succeeded"]]
    close = [it for it in finished if 0 < it <= CLOSE]
    return (
        f"  {kind.name}: {len(finished)} of {len(found)} finished, "
        f"{finished.count(0)} bit by bit the same image, {len(close)} within {CLOSE:.4f}; "
        f"last rungs {dict(rungs)}"
    )

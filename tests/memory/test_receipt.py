"""A receipt adds up, reads well, and says unknown where nothing is known."""

from __future__ import annotations

import json
from typing import Any

import torch
from lowtide.memory import backend
from lowtide.memory.receipt import Reading, Receipt
from lowtide.memory.units import GIB, MIB


def receipt(**facts: Any) -> Receipt:
    known: dict[str, Any] = {
        "device": "cuda:0",
        "before": Reading(3 * MIB, 8 * MIB, GIB, 500 * MIB),
        "after": Reading(MIB, 2 * MIB, 2 * GIB, 400 * MIB),
        "by_owner": {"unet": 2 * MIB, "allocator cache": 4 * MIB},
        "remaining": 0,
        "seconds": 0.1234,
        "collect_seconds": 0.05,
        "trimmed": "malloc_trim",
        "errors": (),
    }
    return Receipt(**{**known, **facts})


def test_it_says_what_came_back() -> None:
    assert receipt().freed == 6 * MIB
    assert receipt().freed_host == 100 * MIB


def test_it_reads_as_lines() -> None:
    assert receipt().text().splitlines() == [
        "Released on cuda:0 in 123 ms",
        "  device: 8.0 MB held, 2.0 MB now (1.0 MB in live tensors)",
        "    unet: 2.0 MB",
        "    allocator cache: 4.0 MB",
        "  host: 500.0 MB held, 400.0 MB now, heap trimmed by malloc_trim",
    ]


def test_what_is_left_and_what_failed_is_said() -> None:
    text = receipt(remaining=MIB, errors=("vae: broken", "unet: too"), trimmed=None).text()
    assert "  still held by what was released: 1.0 MB" in text
    assert text.endswith("400.0 MB now\n  failed: vae: broken\n  failed: unet: too")


def test_without_an_allocator_nothing_is_claimed() -> None:
    bare = Reading(None, None, None, MIB)
    found = receipt(before=bare, after=bare, by_owner={})
    assert found.freed is None
    assert "no allocator to measure here" in found.text()
    assert found.to_dict()["freed"] is None


def test_it_is_plain_json() -> None:
    values = json.loads(json.dumps(receipt().to_dict()))
    assert (values["freed"], values["freed_host"]) == (6 * MIB, 100 * MIB)
    assert values["before"]["reserved"] == 8 * MIB
    assert values["by_owner"] == {"unet": 2 * MIB, "allocator cache": 4 * MIB}


def test_a_reading_is_the_devices(accelerator: Any) -> None:
    kept = torch.zeros(MIB, device=accelerator.device)
    found = Reading.of(accelerator.device)
    assert found.allocated == accelerator.allocated >= kept.nbytes
    assert (found.reserved, found.free) == (accelerator.reserved, accelerator.free)
    assert found.host_rss > 0


def test_a_device_never_used_is_not_woken(accelerator: Any, monkeypatch: Any) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(backend, "mem_get_info", asked.append)
    monkeypatch.setattr(backend, "is_initialized", lambda device: False)
    assert Reading.of(accelerator.device).free is None
    assert asked == []


def test_the_cpu_has_no_allocator() -> None:
    found = Reading.of(torch.device("cpu", 0))
    assert (found.allocated, found.reserved, found.free) == (None, None, None)

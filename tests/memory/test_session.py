"""The selector's choice, the monitor's figures and the cleanup, as the nodes ask for them."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from lowtide.memory import session
from lowtide.memory.device import DeviceSnapshot
from lowtide.memory.errors import BudgetError, ConfigError, LowtideError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.units import GIB, MIB
from lowtide.tests.memory.tiny import held


def card(**facts: Any) -> DeviceSnapshot:
    known: dict[str, Any] = {
        "device": "cuda:0",
        "kind": "cuda",
        "name": "Card",
        "total": 8 * GIB,
        "free": 6 * GIB,
        "allocated": 0,
        "reserved": 0,
        "reserved_by_others": 2 * GIB,
        "unified": False,
    }
    return DeviceSnapshot(**{**known, **facts})


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it to say what the device is."""

    def become(**facts: Any) -> None:
        monkeypatch.setattr(session, "_detect", lambda: card(**facts))

    become()
    return become


def test_a_choice_says_what_was_found_and_decided(device: Any) -> None:
    config, text = session.choose("ultra", 1.5, "off")
    assert (config.level.value, config.budget_bytes, config.cleanup) == (
        "ultra",
        3 * GIB // 2,
        "off",
    )
    assert text.splitlines() == [
        "Device: cuda:0 (Card), 8.00 GB in all, 6.00 GB free, 2.00 GB held by other programs",
        "Level: ultra (ultra was chosen by hand)",
        "Budget: 1.50 GB",
        "Cleanup: off",
        "Rescue: a node that is out of memory runs again with less",
    ]


def test_auto_goes_by_what_was_found(device: Any) -> None:
    device(total=11 * GIB)
    by_size = "balanced (11.00 GB, under 12 GB: balanced)"
    config, text = session.choose("auto (by VRAM size)", 0, "pressure")
    assert (config.level.value, config.requested_level.value) == ("balanced", "auto")
    assert f"Level: {by_size}\n" in text
    config, text = session.choose("auto", 0, "pressure")
    assert (config.level.value, config.requested_level.value) == ("balanced", "fastest")
    assert "Level: the fastest that fits, chosen by Optimize Pipeline; " in text
    assert f"{by_size} where it can't predict" in text


def test_what_is_not_known_is_called_unknown(device: Any) -> None:
    device(total=None, free=None, reserved_by_others=None, unified=None)
    _, text = session.choose("auto", 0, "off")
    assert "unknown in all, unknown free\n" in text
    assert session.choose("none", 64, "off")[0].budget_bytes == 64 * GIB


def test_shared_memory_is_named_as_such(device: Any) -> None:
    device(unified=True, reserved_by_others=None)
    assert "8.00 GB in all, shared with the host, " in session.choose("auto", 0, "off")[1]


def test_a_cleanup_policy_brings_the_cleanup_at_the_end(device: Any) -> None:
    for cleanup in ("pressure", "always"):
        config = session.choose("none", 0, cleanup)[0]
        assert (config.cleanup, config.on_exit) == (cleanup, True)


@pytest.mark.parametrize("budget", [True, "2", None])
def test_a_budget_is_a_number(device: Any, budget: Any) -> None:
    with pytest.raises(ConfigError, match="is no number"):
        session.choose("none", budget, "off")


def test_a_budget_is_more_than_a_byte_and_fits_the_device(device: Any) -> None:
    with pytest.raises(ConfigError, match="less than one byte"):
        session.choose("none", 1e-12, "off")
    with pytest.raises(BudgetError, match=r"8\.10 GB is more than cuda:0 has; give at most 8\.00"):
        session.choose("none", 8.1, "off")
    assert session.choose("none", 8.0, "off")[0].budget_bytes == 8 * GIB


def test_the_fingerprint_follows_the_device_and_not_its_free_memory(device: Any) -> None:
    first = session.detection_fingerprint("auto")
    device(free=GIB, allocated=3, reserved=4)
    assert session.detection_fingerprint("auto") == first
    for facts in ({"total": 4 * GIB}, {"name": "Other"}, {"device": "cuda:1"}):
        device(**facts)
        assert session.detection_fingerprint("auto") != first


def test_the_fingerprint_never_raises(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert session.detection_fingerprint("nonsense") == "ConfigError"

    def broken() -> None:
        raise RuntimeError("driver gone")

    monkeypatch.setattr(session, "_detect", broken)
    assert session.detection_fingerprint("auto") == "RuntimeError"


def test_native_models_need_comfyui() -> None:
    with pytest.raises(LowtideError, match="this process is no ComfyUI"):
        session.optimize_native(MemoryOptimizationConfig())


def test_the_monitor_reads_now(accelerator: Any) -> None:
    text, figures = session.monitor("7")
    more = torch.zeros(5 * MIB, dtype=torch.uint8, device=accelerator.device)
    assert session.monitor()[1]["allocated"] == figures["allocated"] + more.nbytes
    assert session.reread({})["text"][0].splitlines()[0] == text.splitlines()[0]


@pytest.mark.parametrize("target", ["vram", "ram", "both"])
def test_a_cleanup_is_told_what_to_clean(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    asked: list[dict[str, object]] = []
    module = ModuleType("lowtide.memory.teardown")

    def teardown(**what: object) -> SimpleNamespace:
        asked.append(what)
        return SimpleNamespace(text=lambda: "done", to_dict=lambda: {"freed": 1})

    module.teardown = teardown  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lowtide.memory.teardown", module)
    assert session.force_cleanup(target, keep=" Flux, sdxl ,") == ("done", {"freed": 1})
    where = {"vram": target != "ram", "ram": target != "vram"}
    assert asked == [{**where, "keep": ["Flux", "sdxl"]}]


def test_an_unknown_target_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match="unknown target 'gpu'; choose one of: vram, ram, both"):
        session.force_cleanup("gpu")


def test_a_repeated_cleanup_takes_the_graphs_target_or_the_usual_one(accelerator: Any) -> None:
    base = held(accelerator)
    for target in ("ram", ["3", 0], None):
        torch.zeros(MIB, device=accelerator.device)
        shown = session.repeat_cleanup({} if target is None else {"target": target})
        text = shown["text"][0]
        assert shown["receipt"][0]["freed"] >= 0
        assert accelerator.reserved == base[1]
        assert ("heap trimmed" in text) == (target == "ram")

"""What is known of other packs and start flags without a ComfyUI to ask."""

from __future__ import annotations

import argparse
import sys
from types import ModuleType, SimpleNamespace

import pytest
from lowtide.memory.adapters import comfy
from lowtide.memory.adapters.comfy import compatibility, dynamic, start_flags


def patcher_class(module: str, base: type = object, **methods: object) -> type:
    return type("Patcher", (base,), {"__module__": module, **methods})


CORE = patcher_class("comfy.model_patcher", load=1, partially_load=1, detach=1, clone=1)


@pytest.mark.parametrize("method", compatibility.PLACING)
def test_a_class_of_another_pack_that_places_weights_is_found(method: str) -> None:
    foreign = patcher_class("custom_nodes.other.patcher", CORE, **{method: 1})
    assert compatibility.placed_by(foreign) is foreign
    ours = patcher_class("lowtide.memory.adapters.comfy.patchers", foreign, partially_load=1)
    assert compatibility.placed_by(ours) is foreign


def test_the_core_s_and_our_own_classes_are_not() -> None:
    dynamic_core = patcher_class("comfy.model_patcher", CORE, load=1)
    ours = patcher_class("lowtide.memory.adapters.comfy.patchers", dynamic_core, partially_load=1)
    harmless = patcher_class("custom_nodes.other", CORE, clone=1, patch_weight_to_device=1)
    assert [compatibility.placed_by(kind) for kind in (CORE, dynamic_core, ours, harmless)] == [
        None
    ] * 4


@pytest.mark.parametrize(
    "module",
    [
        "/srv/ComfyUI/custom_nodes/ComfyUI-Other",
        "/srv/ComfyUI/custom_nodes/ComfyUI-Other.nodes.model",
        "C:\\ComfyUI\\custom_nodes\\ComfyUI-Other.nodes",
        "custom_nodes.ComfyUI-Other.nodes",
    ],
)
def test_a_pack_is_called_by_its_folder(module: str) -> None:
    assert compatibility._origin(SimpleNamespace(__module__=module)) == "ComfyUI-Other"


def test_outside_comfyui_nothing_is_named_or_counted() -> None:
    assert start_flags.notes() == start_flags.device_notes() == []
    assert not dynamic.active()
    assert comfy.outside_torch() == 0


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch):
    """Call it with a command line."""

    def start(*line: str) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--novram", action="store_true")
        parser.add_argument("--fp8_e4m3fn-unet", action="store_true")
        parser.add_argument("--reserve-vram", type=float, default=None)
        parser.add_argument("--vram-headroom", type=float, default=0)
        parser.add_argument("--cache-ram", nargs="*", type=float, default=[])
        parser.add_argument("--listen", default="127.0.0.1")
        module = ModuleType("comfy.cli_args")
        module.__dict__.update(args=parser.parse_args(line), parser=parser)
        monkeypatch.setitem(sys.modules, "comfy.cli_args", module)

    return start


def test_a_flag_is_spelled_as_it_is_given(started) -> None:
    started("--fp8_e4m3fn-unet", "--reserve-vram", "1.5", "--cache-ram", "4", "32", "--listen", "x")
    found = [note.split(":")[0] for note in start_flags.notes()]
    assert found == ["--reserve-vram", "--fp8_e4m3fn-unet", "--cache-ram"]
    text = "\n".join(start_flags.notes())
    assert "keeps 1.5 GB" in text and "below 4, 32 GB" in text


def test_only_what_concerns_the_device_is_said_beside_the_level(started) -> None:
    started("--novram", "--fp8_e4m3fn-unet")
    assert [note.split(":")[0] for note in start_flags.device_notes()] == ["--novram"]


def test_defaults_are_not_named(started) -> None:
    started("--vram-headroom", "0")
    assert start_flags.notes() == []


def test_dynamic_vram_is_said_beside_the_level(monkeypatch: pytest.MonkeyPatch, started) -> None:
    started()
    module = ModuleType("comfy.memory_management")
    module.__dict__["aimdo_enabled"] = True
    monkeypatch.setitem(sys.modules, "comfy.memory_management", module)
    (note,) = start_flags.device_notes()
    assert note.startswith("DynamicVRAM is on")

"""Lowtide Memory Settings."""

from __future__ import annotations

from typing import Any

import pytest
from lowtide.memory.errors import ConfigError, TargetError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.tests.nodes.shape import check_conventions, inputs, node

NAME = "LowtideMemorySettings"
LEVELS = ["none", "balanced", "aggressive", "ultra"]


def defaults() -> dict[str, Any]:
    required = node(NAME).INPUT_TYPES()["required"]
    return {name: spec[1]["default"] for name, spec in required.items() if name != "config"}


def run(level: str = "balanced", **widgets: Any) -> tuple[MemoryOptimizationConfig, str]:
    config = MemoryOptimizationConfig.from_level(level)
    return node(NAME)().run(config, **{**defaults(), **widgets})


def test_inputs_and_outputs_are_those_of_saved_graphs() -> None:
    check_conventions(NAME, "Lowtide Memory Settings")
    assert inputs(NAME) == {
        "config": "LOWTIDE_CONFIG",
        "fp8_storage": ["level", "on", "off"],
        "keep_originals": ["level", "on", "off"],
        "attention": [
            "level",
            "auto",
            "pytorch",
            "xformers",
            "sub-quadratic",
            "split",
            "sliced",
        ],
        "attention_slice_size": "INT",
        "forward_chunk_size": "INT",
        "vae_tiling": ["level", "on", "off"],
        "vae_tile_mode": ["level", "auto", "exact", "blended"],
        "vae_tile_size": "INT",
        "vae_decode_chunk_size": "INT",
    }
    switches = ["after_load", "after_lora", "after_step", "after_unload", "on_exit", "cleanup_host"]
    switches += ["history", "step_peaks"]
    assert inputs(NAME, "optional") == {name: ["level", "on", "off"] for name in switches}
    assert node(NAME).RETURN_TYPES == ("LOWTIDE_CONFIG", "STRING")


def test_each_moment_of_cleanup_has_a_switch() -> None:
    for name in inputs(NAME, "optional"):
        for said, expected in (("on", True), ("off", False)):
            assert getattr(run(**{name: said})[0], name) is expected
    with pytest.raises(ConfigError, match="`on_exit` is 'maybe'"):
        run(on_exit="maybe")


@pytest.mark.parametrize("level", LEVELS)
def test_as_it_is_put_down_it_changes_nothing(level: str) -> None:
    config, text = run(level)
    assert config == MemoryOptimizationConfig.from_level(level)
    assert text == f"Level {level}, as it is"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("widgets", "fields"),
    [
        ({"fp8_storage": "on"}, {"fp8_storage": True}),
        ({"fp8_storage": "off"}, {"fp8_storage": False}),
        (
            {"fp8_storage": "on", "keep_originals": "off"},
            {"fp8_storage": True, "keep_originals": False},
        ),
        ({"attention": "split"}, {"attention": "split"}),
        (
            {"attention": "sliced", "attention_slice_size": 2},
            {"attention": "sliced", "attention_slice_size": 2},
        ),
        ({"forward_chunk_size": 1024}, {"forward_chunk_size": 1024}),
        ({"vae_tiling": "off"}, {"enable_vae_tiling": False}),
        (
            {"vae_tiling": "on", "vae_tile_mode": "blended", "vae_tile_size": 320},
            {"enable_vae_tiling": True, "vae_tile_mode": "blended", "vae_tile_size": 320},
        ),
        (
            {"vae_decode_chunk_size": 4},
            {"enable_vae_slicing": True, "vae_decode_chunk_size": 4},
        ),
    ],
)
def test_each_widget_sets_its_field_and_no_other(
    level: str, widgets: dict[str, Any], fields: dict[str, Any]
) -> None:
    config, text = run(level, **widgets)
    expected = MemoryOptimizationConfig.from_level(level).replace(**fields)
    assert config == expected
    before = MemoryOptimizationConfig.from_level(level).to_dict()
    changed = sum(before[name] != value for name, value in fields.items())
    assert len(text.splitlines()) == 1 + changed


def test_what_changed_is_said() -> None:
    _, text = run(attention="sliced", vae_tiling="off", forward_chunk_size=512)
    assert text.splitlines() == [
        "Level balanced, with:",
        "attention: sliced (was auto)",
        "forward chunk size: 512 (was not set)",
        "vae tiling: off (was on)",
    ]


def test_the_configuration_that_came_in_stays_as_it_was() -> None:
    config = MemoryOptimizationConfig.from_level("balanced")
    node(NAME)().run(config, **{**defaults(), "attention": "split", "vae_tiling": "off"})
    assert config == MemoryOptimizationConfig.from_level("balanced")


def test_several_in_a_row_add_up() -> None:
    first, _ = run(attention="split")
    second, _ = node(NAME)().run(first, **{**defaults(), "forward_chunk_size": 64})
    assert (second.attention, second.forward_chunk_size) == ("split", 64)


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"fp8_storage": "yes"}, "`fp8_storage` is 'yes'; it takes one of: level, on, off"),
        ({"attention": "flash"}, "`attention` is 'flash'; it takes one of: 'auto'"),
        ({"forward_chunk_size": -1}, "`forward_chunk_size` is -1; .* 0 to leave it"),
        ({"attention_slice_size": True}, "`attention_slice_size` is True; it takes a whole"),
        ({"vae_tile_size": 100}, "give a multiple of 8, for example 96"),
        ({"vae_tile_size": 32}, "whole number of pixels, 64 or more"),
        ({"vae_tile_mode": "sharp"}, "`vae_tile_mode` is 'sharp'; it takes one of"),
        ({"vae_tiling": "off", "vae_tile_size": 128}, "set enable_vae_tiling=True or"),
        ({"attention": "split", "attention_slice_size": 1}, "set attention='sliced' or"),
    ],
)
def test_what_cannot_be_set_is_refused_with_the_remedy(
    widgets: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(**widgets)


def test_what_is_no_configuration_names_the_node_to_plug_in() -> None:
    with pytest.raises(TargetError, match="Lowtide Memory Level Selector"):
        node(NAME)().run("balanced", **defaults())

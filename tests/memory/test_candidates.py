"""The levels and tiles a configuration may be given."""

from __future__ import annotations

import pytest
from lowtide.memory.candidates import levels_from, same_effect, smaller_tiles
from lowtide.memory.errors import ConfigError
from lowtide.memory.levels import MemoryOptimizationConfig, OptimizationLevel
from lowtide.memory.units import GIB

NAMES = ["none", "balanced", "aggressive", "ultra"]


def config(level: str, **more: object) -> MemoryOptimizationConfig:
    return MemoryOptimizationConfig.from_level(level, **more)


@pytest.mark.parametrize("asked", ["auto", "fastest"])
def test_what_is_chosen_for_you_may_be_any_level(asked: str) -> None:
    base = config("aggressive", requested_level=asked, cleanup="off")
    found = list(levels_from(base))
    assert [it.level.value for it in found] == NAMES
    assert found[2] is base
    assert {it.cleanup for it in found} == {"off"}
    assert {it.requested_level for it in found} == {OptimizationLevel(asked)}
    assert found[0].reason == "none by what is free"


@pytest.mark.parametrize("asked", NAMES)
def test_a_level_asked_for_by_name_is_never_weakened(asked: str) -> None:
    found = list(levels_from(config(asked, budget_bytes=GIB)))
    assert [it.level.value for it in found] == NAMES[NAMES.index(asked) :]


def test_settings_made_by_hand_go_along_or_say_why_not() -> None:
    base = config("balanced", requested_level="fastest", vae_tile_overlap=0.125)
    assert {it.vae_tile_overlap for it in levels_from(base)} == {0.125}
    # Blocks are of group offload only: what is gentler is passed over, what is stronger is not.
    blocks = config("ultra", requested_level="fastest", group_offload_type="block_level")
    assert [it.level.value for it in levels_from(blocks)][-1] == "ultra"


def test_a_stronger_level_that_excludes_a_setting_is_an_error(monkeypatch) -> None:
    from lowtide.memory import candidates

    def refuse(config: object, level: OptimizationLevel) -> MemoryOptimizationConfig:
        raise ConfigError("as planned")

    monkeypatch.setattr(candidates, "at_level", refuse)
    with pytest.raises(ConfigError, match="as planned"):
        list(levels_from(config("balanced")))
    assert [it.level.value for it in levels_from(config("ultra", requested_level="fastest"))] == [
        "ultra"
    ]


def test_tiles_get_smaller_than_the_levels_own() -> None:
    def edges(base: MemoryOptimizationConfig, size: int = 1024) -> list[int | None]:
        return [it.vae_tile_size for it in smaller_tiles(base, size, size)]

    assert edges(config("none")) == [512, 256, 128]
    assert edges(config("balanced")) == [256, 128]
    assert edges(config("none"), 256) == [128]
    assert edges(config("none"), 64) == []
    assert edges(config("balanced", vae_tile_size=384)) == [], "set by hand"
    assert all(it.enable_vae_tiling for it in smaller_tiles(config("none"), 512, 512))


def test_who_asked_changes_no_effect() -> None:
    one = config("balanced", requested_level="fastest", reason="this")
    assert same_effect(one, config("balanced", reason="that"))
    assert not same_effect(one, config("balanced", vae_tile_size=64))
    assert not same_effect(one, config("none"))

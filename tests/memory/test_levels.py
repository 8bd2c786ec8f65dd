"""Levels: what each stands for, how AUTO chooses, and what cannot be set."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lowtide.memory.device import DeviceSnapshot
from lowtide.memory.errors import ConfigError
from lowtide.memory.levels import (
    FIELD_NAMES,
    MemoryOptimizationConfig,
    OptimizationLevel,
)
from lowtide.memory.units import GIB

AUTO, FASTEST, NONE, BALANCED, AGGRESSIVE, ULTRA = OptimizationLevel
ROOT = Path(__file__).parents[2]


def snapshot_of(total, kind="cuda", unified=False):
    return DeviceSnapshot(
        device=f"{kind}:0",
        kind=kind,
        name="test",
        total=total,
        free=total,
        allocated=0,
        reserved=0,
        reserved_by_others=0,
        unified=unified,
    )


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["balanced", "Balanced", " BALANCED ", BALANCED])
def test_a_level_is_read_in_any_case(text):
    assert OptimizationLevel.parse(text) is BALANCED


@pytest.mark.parametrize("text", ["extreme", "", None, 3])
def test_an_unknown_level_lists_the_choices(text):
    with pytest.raises(ConfigError, match="auto, fastest, none, balanced, aggressive, ultra"):
        OptimizationLevel.parse(text)


# -- presets -----------------------------------------------------------------------------------


def test_none_touches_nothing():
    config = MemoryOptimizationConfig.from_level(NONE)
    untouched = ("fp8_storage", "enable_vae_tiling", "enable_vae_slicing", "cpu_mode")
    assert not any(getattr(config, name) for name in untouched)
    assert (config.offload, config.attention, config.cleanup) == ("none", "auto", "off")
    assert config.vae_decode_chunk_size is config.forward_chunk_size is None


@pytest.mark.parametrize(
    ("level", "offload", "fp8", "chunk", "cleanup", "tile"),
    [
        ("balanced", "component", False, None, "pressure", 512),
        ("aggressive", "sequential", False, 1, "always", 256),
        ("ultra", "group", True, 1, "always", 256),
    ],
)
def test_each_level_is_what_the_brief_says(level, offload, fp8, chunk, cleanup, tile):
    config = MemoryOptimizationConfig.from_level(level)
    assert (config.offload, config.fp8_storage, config.cleanup) == (offload, fp8, cleanup)
    assert config.enable_vae_tiling and config.enable_vae_slicing
    assert (config.vae_decode_chunk_size, config.tile_limit) == (chunk, tile)
    assert config.group_offload_type == "leaf_level"
    assert config.attention == "auto" and config.use_stream is None
    assert config.after_load and config.on_exit and not config.after_step
    assert config.level.value == config.requested_level.value == level


@pytest.mark.parametrize(
    ("level", "height", "width", "tile"),
    [
        ("balanced", 1024, 1024, 512),  # SDXL's own tile of 1024 would do nothing here
        ("balanced", 512, 768, 384),
        ("balanced", 4096, 4096, 512),
        ("ultra", 1024, 1024, 256),
        ("ultra", 360, 200, 128),
        ("ultra", 64, 64, 64),
    ],
)
def test_the_tile_chosen_is_smaller_than_the_image(level, height, width, tile):
    assert MemoryOptimizationConfig.from_level(level).tile_for(height, width) == tile


def test_a_tile_set_by_hand_is_taken():
    config = MemoryOptimizationConfig.from_level("ultra", vae_tile_size=320)
    assert config.tile_for(1024, 1024) == 320


# -- copies ------------------------------------------------------------------------------------


def test_a_copy_changes_alone_and_is_validated():
    config = MemoryOptimizationConfig.auto(snapshot_of(5 * GIB))
    copy = config.replace(budget_bytes=GIB, cleanup="off")
    assert (config.budget_bytes, config.cleanup) == (None, "always")
    assert (copy.budget_bytes, copy.cleanup, copy.requested_level) == (GIB, "off", AUTO)
    with pytest.raises(ConfigError):
        config.replace(enable_vae_tiling=False, vae_tile_size=128)


@pytest.mark.parametrize("level", ["none", "balanced", "aggressive", "ultra"])
def test_a_configuration_survives_json(level):
    config = MemoryOptimizationConfig.from_level(level)
    values = json.loads(json.dumps(config.to_dict()))
    assert tuple(values) == FIELD_NAMES
    assert MemoryOptimizationConfig.from_dict(values) == config


def test_levels_load_without_torch():
    code = (
        "import importlib.util as u, sys; "
        f"spec = u.spec_from_file_location('lowtide', {str(ROOT / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(ROOT)!r}]); "
        "m = u.module_from_spec(spec); sys.modules['lowtide'] = m; spec.loader.exec_module(m); "
        "import lowtide.memory.levels; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_level_cannot_be_none() -> None:
    with pytest.raises(ConfigError, match="unknown level None"):
        MemoryOptimizationConfig().requested_level = None

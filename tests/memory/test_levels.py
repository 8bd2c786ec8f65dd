"""Levels: what each stands for, how AUTO chooses, and what cannot be set."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lowtide.memory.device import DeviceSnapshot
from lowtide.memory.errors import BudgetError, ConfigError, UnknownSettingError
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


# -- setting fields ----------------------------------------------------------------------------


def test_fields_are_set_by_hand_as_in_the_brief():
    config = MemoryOptimizationConfig.from_level(OptimizationLevel.BALANCED)
    config.enable_vae_tiling = False
    config.vae_decode_chunk_size = 2
    config.validate()
    assert (config.enable_vae_tiling, config.vae_decode_chunk_size) == (False, 2)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("offload", ["model", None, True]),
        ("group_offload_type", ["leaf"]),
        ("group_blocks", [0, -1, 1.5, True, None]),
        ("use_stream", ["yes", 1]),
        ("record_stream", [None, 1]),
        ("low_cpu_mem", ["on"]),
        ("fp8_storage", [1]),
        ("storage_dtype", ["int8"]),
        ("keep_originals", [None, 0]),
        ("compute_dtype", ["float64"]),
        ("enable_vae_tiling", [None]),
        ("vae_tile_size", [0, 32, 63, 100, 256.0, True]),
        ("vae_tile_overlap", [-0.1, 0.6, float("nan"), "0.25", True]),
        ("enable_vae_slicing", ["no"]),
        ("vae_decode_chunk_size", [0, -1, True, 1.0]),
        ("attention", ["flash", None]),
        ("attention_slice_size", [0, "half", True, None]),
        ("forward_chunk_size", [0, False]),
        ("cleanup", ["sometimes", False]),
        ("after_load", [1]),
        ("after_lora", [None]),
        ("after_step", ["x"]),
        ("after_unload", [0]),
        ("on_exit", [None]),
        ("budget_bytes", [0, -1, 1.5, True]),
        ("cpu_mode", [None]),
        ("reason", [None]),
    ],
)
def test_a_value_out_of_range_is_refused_on_assignment(field, values):
    config = MemoryOptimizationConfig.from_level("none")
    before = getattr(config, field)
    for value in values:
        with pytest.raises(ConfigError, match=f"`{field}`"):
            setattr(config, field, value)
        with pytest.raises(ConfigError, match=f"`{field}`"):
            MemoryOptimizationConfig.from_level("none", **{field: value})
    assert getattr(config, field) == before


def test_an_unknown_setting_names_the_nearest():
    config = MemoryOptimizationConfig.from_level("none")
    with pytest.raises(AttributeError, match="did you mean 'enable_vae_tiling'"):
        config.enable_vae_tilin = True
    with pytest.raises(UnknownSettingError, match="did you mean 'vae_decode_chunk_size'"):
        MemoryOptimizationConfig.from_level("ultra", vae_decode_chunksize=1)
    with pytest.raises(ConfigError, match="there are: level, requested_level"):
        MemoryOptimizationConfig.from_dict({"zzz": 1})


def test_a_level_is_a_preset_and_no_field_to_flip():
    config = MemoryOptimizationConfig.from_level("balanced")
    with pytest.raises(ConfigError, match=r"from_level\('ultra'\)"):
        config.level = "ultra"
    with pytest.raises(ConfigError, match="from_level"):
        config.replace(level="none")
    for name in ("auto", "fastest"):
        with pytest.raises(ConfigError, match=f"can't stay {name}"):
            MemoryOptimizationConfig(level=name)
    assert config.level is BALANCED


# -- combinations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"group_blocks": 2}, ["group_blocks", "offload"]),
        ({"offload": "sequential", "use_stream": True}, ["use_stream", "offload"]),
        ({"offload": "component", "low_cpu_mem": True}, ["low_cpu_mem", "offload"]),
        ({"record_stream": True}, ["record_stream", "offload"]),
        ({"group_offload_type": "block_level"}, ["group_offload_type", "offload"]),
        ({"offload": "group", "group_blocks": 2}, ["group_blocks", "group_offload_type"]),
        (
            {
                "offload": "group",
                "group_offload_type": "block_level",
                "group_blocks": 2,
                "use_stream": True,
            },
            ["group_blocks", "use_stream"],
        ),
        (
            {"offload": "group", "use_stream": False, "record_stream": True},
            ["record_stream", "use_stream"],
        ),
        (
            {"offload": "group", "use_stream": False, "low_cpu_mem": True},
            ["low_cpu_mem", "use_stream"],
        ),
        ({"compute_dtype": "bfloat16"}, ["compute_dtype", "fp8_storage"]),
        ({"keep_originals": False}, ["keep_originals", "fp8_storage"]),
        ({"vae_tile_size": 256}, ["vae_tile_size", "enable_vae_tiling"]),
        ({"vae_tile_overlap": 0.5}, ["vae_tile_overlap", "enable_vae_tiling"]),
        ({"vae_tile_mode": "blended"}, ["vae_tile_mode", "enable_vae_tiling"]),
        (
            {"enable_vae_tiling": True, "vae_tile_mode": "exact", "vae_tile_overlap": 0.5},
            ["vae_tile_overlap", "vae_tile_mode"],
        ),
        ({"vae_decode_chunk_size": 1}, ["vae_decode_chunk_size", "enable_vae_slicing"]),
        (
            {"attention": "split", "attention_slice_size": 1},
            ["attention_slice_size", "attention"],
        ),
        ({"after_step": True}, ["after_step", "cleanup"]),
    ],
)
def test_settings_that_exclude_each_other_are_both_named(settings, names):
    with pytest.raises(ConfigError, match="set ") as caught:
        MemoryOptimizationConfig.from_level("none", **settings)
    assert all(
        f"`{name}`" in str(caught.value) or f"{name}=" in str(caught.value) for name in names
    )
    config = MemoryOptimizationConfig.from_level("none")
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(ConfigError):
        config.validate()


def test_settings_that_go_together_pass():
    MemoryOptimizationConfig.from_level(
        "ultra",
        group_offload_type="block_level",
        group_blocks=1,
        use_stream=True,
        record_stream=True,
        low_cpu_mem=True,
        compute_dtype="bfloat16",
        keep_originals=False,
        vae_tile_size=192,
        vae_tile_overlap=0.5,
        attention="sliced",
        attention_slice_size="max",
        after_step=True,
    )


def test_a_budget_larger_than_the_device_is_refused():
    config = MemoryOptimizationConfig.from_level("ultra", budget_bytes=9 * GIB)
    config.validate()
    config.validate(device_bytes=9 * GIB)
    with pytest.raises(BudgetError, match=r"9\.00 GB is larger than the device's 8\.00 GB"):
        config.validate(device_bytes=8 * GIB)


@pytest.mark.parametrize(("tile", "factor"), [(64, 64), (96, 64), (72, 16)])
def test_a_tile_must_hold_several_latents(tile, factor):
    config = MemoryOptimizationConfig.from_level("ultra", vae_tile_size=tile)
    config.validate(vae_factor=8)
    with pytest.raises(ConfigError, match=f"`vae_tile_size` = {tile}.*multiple of {factor}"):
        config.validate(vae_factor=factor)


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


@pytest.mark.parametrize("kind", ["pytorch", "xformers", "sub-quadratic", "split", "sliced"])
def test_every_kind_of_attention_is_taken(kind: str) -> None:
    assert MemoryOptimizationConfig(attention=kind).attention == kind


def test_sdpa_is_another_name_of_pytorch() -> None:
    config = MemoryOptimizationConfig(attention="sdpa")
    assert config.attention == "pytorch"
    config.attention = "auto"
    config.attention = "sdpa"
    assert config.attention == "pytorch"
    assert MemoryOptimizationConfig.from_dict({"attention": "sdpa"}) == MemoryOptimizationConfig(
        attention="pytorch"
    )

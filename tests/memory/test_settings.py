"""Settings: their ranges, those that exclude each other, and the messages."""

import pytest
from lowtide.memory.errors import BudgetError, ConfigError, UnknownSettingError
from lowtide.memory.levels import MemoryOptimizationConfig, OptimizationLevel
from lowtide.memory.units import GIB


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
        ("cleanup_host", [1]),
        ("history", ["no"]),
        ("step_peaks", [None]),
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
    assert config.level is OptimizationLevel.BALANCED


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

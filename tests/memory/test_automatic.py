"""AUTO: by the size of the device."""

import pytest
from lowtide.memory.automatic import marketed_size, resolve_level
from lowtide.memory.device import DeviceSnapshot
from lowtide.memory.levels import MemoryOptimizationConfig, OptimizationLevel
from lowtide.memory.units import GIB, MIB

AUTO, FASTEST, NONE, BALANCED, AGGRESSIVE, ULTRA = OptimizationLevel


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


@pytest.mark.parametrize(
    ("total", "level", "cpu_mode"),
    [
        (2 * GIB, ULTRA, True),
        (int(3.7 * GIB), ULTRA, True),
        (int(3.82 * GIB), ULTRA, False),  # sold as 4 GB
        (int(3.9 * GIB), ULTRA, False),
        (4 * GIB, ULTRA, False),
        (int(5.7 * GIB), ULTRA, False),
        (int(5.80 * GIB), AGGRESSIVE, False),  # sold as 6 GB
        (6144 * MIB, AGGRESSIVE, False),
        (int(7.7 * GIB), AGGRESSIVE, False),
        (int(7.80 * GIB), BALANCED, False),  # sold as 8 GB: what CUDA says of 8192 MiB
        (8188 * MIB, BALANCED, False),
        (10 * GIB, BALANCED, False),
        (int(11.7 * GIB), BALANCED, False),
        (int(11.76 * GIB), NONE, False),  # sold as 12 GB
        (12282 * MIB, NONE, False),
        (24564 * MIB, NONE, False),
    ],
)
def test_auto_goes_by_the_size_on_the_box(total, level, cpu_mode):
    found, reason, with_cpu = resolve_level("auto", total)
    assert (found, with_cpu) == (level, cpu_mode)
    assert "GB" in reason
    assert ("with CPU mode" in reason) == cpu_mode


def test_marketed_sizes_are_the_nearest_half_gb():
    assert marketed_size(8188 * MIB) == 8 * GIB
    assert marketed_size(int(7.74 * GIB)) == int(7.5 * GIB)


def test_a_level_chosen_by_hand_is_kept_whatever_the_device():
    level, reason, cpu_mode = resolve_level(ULTRA, 24 * GIB)
    assert (level, cpu_mode) == (ULTRA, False)
    assert "by hand" in reason


def test_an_unknown_size_gives_balanced_and_says_why():
    level, reason, cpu_mode = resolve_level(AUTO, None)
    assert (level, cpu_mode) == (BALANCED, False)
    assert "does not say how much memory" in reason


def test_unified_memory_is_named_as_such():
    config = MemoryOptimizationConfig.auto(snapshot_of(int(5.3 * GIB), "mps", unified=True))
    assert config.level is ULTRA
    assert "5.30 GB of unified memory usable" in config.reason


def test_auto_remembers_that_it_was_asked():
    config = MemoryOptimizationConfig.auto(snapshot_of(3 * GIB), attention="split")
    assert (config.level, config.requested_level) == (ULTRA, AUTO)
    assert config.cpu_mode
    assert config.attention == "split"


def test_without_an_accelerator_nothing_is_offloaded():
    config = MemoryOptimizationConfig.auto(snapshot_of(4 * GIB, "cpu", unified=True))
    assert (config.level, config.offload, config.cpu_mode) == (ULTRA, "none", True)
    assert config.fp8_storage and config.enable_vae_tiling
    assert "no accelerator" in config.reason and "unified" not in config.reason


def test_from_level_auto_looks_at_the_device(accelerator):
    accelerator(capacity="7G")
    config = MemoryOptimizationConfig.from_level("auto")
    assert (config.level, config.requested_level) == (AGGRESSIVE, AUTO)
    assert "7.00 GB" in config.reason


def test_fastest_begins_as_auto_and_says_what_was_asked(accelerator):
    accelerator(capacity="7G")
    config = MemoryOptimizationConfig.from_level("fastest", cleanup="off")
    assert (config.level, config.requested_level) == (AGGRESSIVE, FASTEST)
    assert config.reason == MemoryOptimizationConfig.from_level("auto").reason
    assert config.replace(vae_tile_size=128).requested_level is FASTEST
    assert resolve_level(FASTEST, 7 * GIB) == resolve_level(AUTO, 7 * GIB)

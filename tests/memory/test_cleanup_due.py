"""When a cleanup is due: the policy, the switches, the pressure."""

import pytest
import torch
from lowtide.memory.cleanup import MOMENTS, cleanup_due, release
from lowtide.memory.errors import ConfigError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.units import MIB


@pytest.mark.parametrize("moment", [m for m in MOMENTS if m != "after_step"])
def test_cleanups_follow_policy_and_switch(accelerator, moment):
    for level, due in (("none", False), ("ultra", True)):
        config = MemoryOptimizationConfig.from_level(level)
        assert cleanup_due(config, moment) is due
        assert cleanup_due(config.replace(**{moment: False}), moment) is False


def test_a_cleanup_after_every_step_is_by_choice(accelerator):
    config = MemoryOptimizationConfig.from_level("ultra")
    assert not cleanup_due(config, "after_step")
    assert cleanup_due(config.replace(after_step=True), "after_step")


def test_under_pressure_cleanups_wait_until_memory_is_short(accelerator):
    config = MemoryOptimizationConfig.from_level("balanced")
    accelerator(capacity="100M")
    release()
    used = accelerator.reserved
    assert not cleanup_due(config, "on_exit", accelerator.device)
    size = (100 - 12) * MIB - used
    held = torch.zeros(size, dtype=torch.uint8, device=accelerator.device)
    assert cleanup_due(config, "on_exit", accelerator.device)
    del held
    assert cleanup_due(config, "on_exit")  # it is cached, which a cleanup gives back


def test_a_device_that_does_not_say_what_is_free_counts_as_short(accelerator):
    config = MemoryOptimizationConfig.from_level("balanced")
    assert cleanup_due(config, "on_exit", "cpu")


def test_an_unknown_moment_is_refused():
    config = MemoryOptimizationConfig.from_level("ultra")
    with pytest.raises(ConfigError, match="after_load, after_lora"):
        cleanup_due(config, "before_breakfast")

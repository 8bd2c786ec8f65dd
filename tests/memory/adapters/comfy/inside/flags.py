"""Cases: start flags that change what Lowtide changes."""

from __future__ import annotations

import contextlib

import comfy.cli_args
from foreign import plain
from lowtide.memory import session
from lowtide.memory.adapters.comfy import start_flags
from lowtide.memory.levels import MemoryOptimizationConfig


@contextlib.contextmanager
def given(**flags: object):
    args = comfy.cli_args.args
    kept = {name: getattr(args, name) for name in flags if hasattr(args, name)}
    for name, value in flags.items():
        setattr(args, name, value)
    try:
        yield
    finally:
        for name in flags:
            if name in kept:
                setattr(args, name, kept[name])
            else:
                delattr(args, name)


def case_only_flags_that_are_known_and_given_are_named() -> None:
    assert [note for note in start_flags.notes() if not note.startswith("--cpu:")] == []
    for name in start_flags.FLAGS:
        if not hasattr(comfy.cli_args.args, name):
            continue
        value = 2.5 if name in ("reserve_vram", "vram_headroom") else True
        value = 3 if name == "cache_lru" else [4.0] if name == "cache_ram" else value
        with given(**{name: value}):
            found = [note for note in start_flags.notes() if not note.startswith("--cpu:")]
            assert len(found) == (name != "cpu"), (name, found)
            assert "{" not in "".join(found), found
    with given(reserve_vram=2.5, fp8_e4m3fn_unet=True):
        text = "\n".join(start_flags.notes())
        assert "--reserve-vram: ComfyUI keeps 2.5 GB" in text, text
        assert "--fp8_e4m3fn-unet: the weights are in FP8 already" in text, text
        assert "fp8" not in "\n".join(start_flags.notes(device_only=True))


def case_flags_are_in_both_nodes_texts() -> None:
    with given(disable_smart_memory=True, fp32_vae=True):
        config = MemoryOptimizationConfig.from_level("balanced")
        text = session.optimize_native(config, model=plain()).report.text()
        assert "--disable-smart-memory: " in text and "--fp32-vae: " in text
        _, text = session.choose("balanced", 0, "pressure")
        assert "Note: --disable-smart-memory: " in text and "--fp32-vae" not in text
    _, text = session.choose("balanced", 0, "pressure")
    assert "Note: --disable" not in text

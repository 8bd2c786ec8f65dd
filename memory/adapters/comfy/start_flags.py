"""ComfyUI's start flags that change what Lowtide changes, and what follows from each.

Only flags this ComfyUI knows and the user gave are named: those whose value is not the default.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from . import dynamic


class Flag(NamedTuple):
    """One flag: whether it concerns the device as such, and one sentence on what follows."""

    device: bool
    follows: str


_NOWHERE = "caps, budgets, leaving when idle and cleanup change nothing"
_TEXT = "text encoders keep this type; Lowtide does not change it"
_ALREADY = "the weights are in FP8 already, and Lowtide leaves them so"
_WIDE = "takes twice the memory of half precision and more"

FLAGS = {
    "gpu_only": Flag(True, f"models stay on the device, so that {_NOWHERE}"),
    "highvram": Flag(True, f"diffusion models stay on the device, so that for them {_NOWHERE}"),
    "novram": Flag(
        True, "ComfyUI streams all weights at any level; a cap has nothing left to save"
    ),
    "lowvram": Flag(
        True, "text encoders run on the CPU, and need no cap there, unless DynamicVRAM is on"
    ),
    "cpu": Flag(True, "everything runs in RAM; levels and budgets of device memory change little"),
    "directml": Flag(
        True, "ComfyUI cannot see how much memory this device has; choose the level by hand"
    ),
    "tpu": Flag(True, "ComfyUI places models on the TPU whole; caps and budgets have no effect"),
    "disable_smart_memory": Flag(
        True, "ComfyUI takes all other models off the device before it loads one, at any level"
    ),
    "reserve_vram": Flag(
        True, "ComfyUI keeps {value} GB of the device free, beside what a budget leaves"
    ),
    "vram_headroom": Flag(True, "DynamicVRAM keeps {value} GB more free, whatever the budget"),
    "disable_dynamic_vram": Flag(
        True, "weights are placed by estimates, so that Lowtide's caps hold in full"
    ),
    "enable_dynamic_vram": Flag(
        True, "DynamicVRAM is on even where ComfyUI would not use it; it places weights itself"
    ),
    "disable_async_offload": Flag(
        False, "streamed weights are waited for; levels that stream take longer"
    ),
    "disable_pinned_memory": Flag(
        False, "weights are copied from pageable RAM; levels that stream take longer"
    ),
    "fast_disk": Flag(False, "DynamicVRAM reads weights from disk again rather than keep them"),
    "high_ram": Flag(False, "ComfyUI keeps models in RAM until it ends; cleanup of RAM frees less"),
    "fp8_e4m3fn_unet": Flag(False, _ALREADY),
    "fp8_e5m2_unet": Flag(False, _ALREADY),
    "fp8_e8m0fnu_unet": Flag(False, _ALREADY),
    "fp8_e4m3fn_text_enc": Flag(False, _TEXT),
    "fp8_e5m2_text_enc": Flag(False, _TEXT),
    "fp32_text_enc": Flag(False, f"the text encoder {_WIDE}"),
    "force_fp32": Flag(False, f"every model {_WIDE}"),
    "fp32_unet": Flag(False, f"the diffusion model {_WIDE}"),
    "fp64_unet": Flag(False, "the diffusion model takes four times the memory of half precision"),
    "fp32_vae": Flag(False, f"the VAE {_WIDE}"),
    "cpu_vae": Flag(False, "the VAE runs in RAM; tiles save RAM there, no device memory"),
    "cache_none": Flag(
        False, "every node runs every time, so models are loaded and optimised for each prompt"
    ),
    "cache_lru": Flag(
        False, "results of {value} nodes are kept, their models in RAM among them, until replaced"
    ),
    "cache_ram": Flag(
        False, "cached results, models among them, are dropped below {value} GB of free RAM"
    ),
    "cache_classic": Flag(False, "models of the last workflow stay in RAM until it changes"),
}


def notes(*, device_only: bool = False) -> list[str]:
    """One sentence for each flag given that changes what Lowtide changes."""
    module = sys.modules.get("comfy.cli_args")
    args = getattr(module, "args", None)
    parser = getattr(module, "parser", None)
    if args is None:
        return []
    found = []
    for name, flag in FLAGS.items():
        if device_only and not flag.device:
            continue
        value = getattr(args, name, None)
        default = None if parser is None else parser.get_default(name)
        if value is None or value is False or value == default:
            continue
        found.append(f"{_spelled(parser, name)}: {flag.follows.format(value=_plain(value))}")
    return found


def device_notes() -> list[str]:
    """What the Level Selector says beside the device: flags, and DynamicVRAM where it is on."""
    found = notes(device_only=True)
    if dynamic.active():
        found.append("DynamicVRAM is on: budgets and caps limit its pages of weights, nothing else")
    return found


def _spelled(parser: Any, name: str) -> str:
    """As on the command line, where some underscores stay."""
    actions = getattr(parser, "_option_string_actions", {})
    spelled = [flag for flag, action in actions.items() if action.dest == name]
    return spelled[0] if spelled else f"--{name.replace('_', '-')}"


def _plain(value: Any) -> str:
    return ", ".join(f"{one:g}" for one in (value if isinstance(value, list) else [value]))

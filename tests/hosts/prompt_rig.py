"""Whole prompts through ComfyUI's own executor, without its server, for scripts that time them.

Import it first, in ComfyUI's interpreter, with a script's arguments starting

    COMFYUI CPU-OR-DEVICE CHECKPOINT PAIRS SIZE STEPS

It boots ComfyUI and the pack in this process, on one thread where the CPU does all the work.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import logging
import sys
import time
from pathlib import Path
from typing import Any

COMFYUI, WHERE, CHECKPOINT, PAIRS, SIZE, STEPS = sys.argv[1:7]
sys.argv = [sys.argv[0], *(["--cpu"] if WHERE == "cpu" else [])]
sys.path.insert(0, COMFYUI)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as mm  # noqa: E402
import execution  # noqa: E402
import torch  # noqa: E402

import nodes  # noqa: E402

logging.getLogger().setLevel(logging.WARNING)

ROOT = Path(__file__).resolve().parents[2]
SIMULATED = WHERE == "cpu" or hasattr(sys, "lowtide_sim_handle")
# Where all work is this process's own, its CPU time is free of what others do to the machine.
clock = time.process_time if SIMULATED else time.perf_counter


class Server:
    """What the executor tells of its progress; nobody listens."""

    client_id = last_node_id = last_prompt_id = None
    sockets_metadata: dict[str, object] = {}

    def send_sync(self, event: str, data: object, sid: object = None) -> None:
        pass


class Load:
    """The stock loader; its output is this executor's own while ComfyUI caches it."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, object]:
        return {"required": {"file": ("STRING", {})}}

    def load(self, file: str) -> tuple[object, object, object]:
        import comfy.sd

        return comfy.sd.load_checkpoint_guess_config(file)[:3]


def _pack() -> dict[str, type]:
    spec = importlib.util.spec_from_file_location(
        "lowtide", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    sys.modules["lowtide"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS


def graph(
    seed: int, cleanup: str | None = None, text: str = "a boat"
) -> dict[str, dict[str, object]]:
    """Text to image; with Lowtide's nodes at level none and a cleanup policy if one is named."""
    source = "1" if cleanup is None else "9"
    made: dict[str, dict[str, object]] = {
        "1": {"class_type": "TestLoad", "inputs": {"file": CHECKPOINT}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": [source, 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": [source, 1]}},
        "4": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": int(SIZE), "height": int(SIZE), "batch_size": 1},
        },
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": [source, 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": seed,
                "steps": int(STEPS),
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": [source, 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "o"}},
    }
    if cleanup is not None:
        made["8"] = {
            "class_type": "LowtideMemoryLevelSelector",
            "inputs": {"level": "none", "budget_gb": 0.0, "cleanup": cleanup},
        }
        made["9"] = {
            "class_type": "LowtideOptimizePipeline",
            "inputs": {"config": ["8", 0], "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2]},
        }
    return made


def executor() -> execution.PromptExecutor:
    """One with a cache, and so a model, of its own."""
    more: dict[str, object] = {}
    if "cache_args" in inspect.signature(execution.PromptExecutor.__init__).parameters:
        more["cache_args"] = {"lru": 0, "ram": 1.0, "ram_inactive": 1.0}
    return execution.PromptExecutor(Server(), cache_type=execution.CacheType.CLASSIC, **more)


def validate(prompt: dict[str, Any], name: str) -> None:
    """As the server does with each prompt before it is queued."""
    valid, error, _, problems = asyncio.run(execution.validate_prompt(name, prompt, None))
    if not valid:
        raise RuntimeError(f"the {name} prompt is not valid: {error} {problems}")


def run(runner: execution.PromptExecutor, prompt: dict[str, Any], name: str) -> None:
    """One prompt; raises if it failed."""
    runner.execute(prompt, name, {}, ["7"])
    if not runner.success:
        raise RuntimeError(f"the {name} prompt failed: {runner.status_messages[-1]}")


def unload() -> None:
    """Take every model off its device."""
    for device in {entry.device for entry in mm.current_loaded_models}:
        mm.free_memory(1e30, device)
    mm.cleanup_models()
    mm.soft_empty_cache()


def turns(names: tuple[str, ...], turn: int) -> list[str]:
    """The names in another order each turn: each in each place equally often."""
    shift = turn % len(names)
    turned = [*names[shift:], *names[:shift]]
    return turned if turn // len(names) % 2 == 0 else turned[::-1]


if SIMULATED:
    torch.set_num_threads(1)
nodes.NODE_CLASS_MAPPINGS.update(_pack())
nodes.NODE_CLASS_MAPPINGS["TestLoad"] = Load

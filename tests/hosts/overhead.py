"""Times prompts with and without Lowtide's nodes in one ComfyUI process; by its own interpreter.

    python overhead.py COMFYUI CPU-OR-DEVICE CHECKPOINT PAIRS SIZE STEPS

Three executors, each with a cache and a model of its own: stock ComfyUI, Lowtide at level none,
and stock once more, to know what the machine's noise alone makes. They take turns in changing
order. Prints JSON on the last line: ``clock``, and under ``first`` (nothing loaded or cached) and
``again`` (another seed) the seconds of each, in rounds of three.
"""

from __future__ import annotations

import gc
import importlib.util
import inspect
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

comfyui, where, checkpoint, pairs, size, steps = sys.argv[1:7]
sys.argv = [sys.argv[0], *(["--cpu"] if where == "cpu" else [])]
sys.path.insert(0, comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as mm  # noqa: E402
import execution  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402

import nodes  # noqa: E402

logging.getLogger().setLevel(logging.WARNING)

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("stock", "lowtide", "stock again")
SIMULATED = where == "cpu" or hasattr(sys, "lowtide_sim_handle")
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


def pack() -> dict[str, type]:
    spec = importlib.util.spec_from_file_location(
        "lowtide", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    sys.modules["lowtide"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS


def graph(seed: int, lowtide: bool) -> dict[str, dict[str, object]]:
    source = "9" if lowtide else "1"
    made: dict[str, dict[str, object]] = {
        "1": {"class_type": "TestLoad", "inputs": {"file": checkpoint}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a boat", "clip": [source, 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": [source, 1]}},
        "4": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": int(size), "height": int(size), "batch_size": 1},
        },
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": [source, 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": seed,
                "steps": int(steps),
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": [source, 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "o"}},
    }
    if lowtide:
        made["8"] = {
            "class_type": "LowtideMemoryLevelSelector",
            "inputs": {"level": "none", "budget_gb": 0.0, "cleanup": "pressure"},
        }
        made["9"] = {
            "class_type": "LowtideOptimizePipeline",
            "inputs": {"config": ["8", 0], "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2]},
        }
    return made


def executor() -> execution.PromptExecutor:
    more: dict[str, object] = {}
    if "cache_args" in inspect.signature(execution.PromptExecutor.__init__).parameters:
        more["cache_args"] = {"lru": 0, "ram": 1.0, "ram_inactive": 1.0}
    return execution.PromptExecutor(Server(), cache_type=execution.CacheType.CLASSIC, **more)


def seconds(runner: execution.PromptExecutor, name: str, seed: int) -> float:
    prompt = graph(seed, name == "lowtide")
    gc.collect()
    started = clock()
    runner.execute(prompt, f"{name}-{seed}", {}, ["7"])
    took = clock() - started
    if not runner.success:
        raise RuntimeError(f"the {name} prompt failed: {runner.status_messages[-1]}")
    return took


def unload() -> None:
    for device in {entry.device for entry in mm.current_loaded_models}:
        mm.free_memory(1e30, device)
    mm.cleanup_models()
    mm.soft_empty_cache()


def order(turn: int) -> list[str]:
    """Each in each place equally often."""
    shift = turn % len(NAMES)
    turned = [*NAMES[shift:], *NAMES[:shift]]
    return turned if turn // len(NAMES) % 2 == 0 else turned[::-1]


def first_prompts(rounds: int) -> list[dict[str, float]]:
    found = []
    for turn in range(rounds):
        took = {}
        for name in order(turn):
            unload()
            took[name] = seconds(executor(), name, 1)
        found.append(took)
    unload()
    return found


def more_prompts(rounds: int) -> list[dict[str, float]]:
    runners = {name: executor() for name in NAMES}
    for name, runner in runners.items():
        for seed in (1, 2):
            seconds(runner, name, seed)
    return [
        {name: seconds(runners[name], name, 10 + turn) for name in order(turn)}
        for turn in range(rounds)
    ]


if SIMULATED:
    torch.set_num_threads(1)
nodes.NODE_CLASS_MAPPINGS.update(pack())
nodes.NODE_CLASS_MAPPINGS["TestLoad"] = Load
with tempfile.TemporaryDirectory() as folder:
    folder_paths.set_output_directory(folder)
    for name in NAMES:
        seconds(executor(), name, 0)  # imports and caches of the process's first runs
    result = {
        "first": first_prompts(max(3, int(pairs) // 3)),
        "again": more_prompts(int(pairs)),
        "clock": "CPU" if SIMULATED else "wall-clock",
    }
print("\n" + json.dumps(result))

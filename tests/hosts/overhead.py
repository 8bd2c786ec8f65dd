"""Times prompts with and without Lowtide's nodes in one ComfyUI process; by its own interpreter.

    python overhead.py COMFYUI CPU-OR-DEVICE CHECKPOINT PAIRS SIZE STEPS

Three executors, each with a cache and a model of its own: stock ComfyUI, Lowtide at level none,
and stock once more, to know what the machine's noise alone makes. They take turns in changing
order. Prints JSON on the last line: ``clock``, and under ``first`` (nothing loaded or cached) and
``again`` (another seed) the seconds of each, in rounds of three.
"""

from __future__ import annotations

import gc
import json
import tempfile

import prompt_rig as rig

NAMES = ("stock", "lowtide", "stock again")


def seconds(runner: rig.execution.PromptExecutor, name: str, seed: int) -> float:
    prompt = rig.graph(seed, "pressure" if name == "lowtide" else None)
    gc.collect()
    started = rig.clock()
    rig.run(runner, prompt, f"{name}-{seed}")
    return rig.clock() - started


def first_prompts(rounds: int) -> list[dict[str, float]]:
    found = []
    for turn in range(rounds):
        took = {}
        for name in rig.turns(NAMES, turn):
            rig.unload()
            took[name] = seconds(rig.executor(), name, 1)
        found.append(took)
    rig.unload()
    return found


def more_prompts(rounds: int) -> list[dict[str, float]]:
    runners = {name: rig.executor() for name in NAMES}
    for name, runner in runners.items():
        for seed in (1, 2):
            seconds(runner, name, seed)
    return [
        {name: seconds(runners[name], name, 10 + turn) for name in rig.turns(NAMES, turn)}
        for turn in range(rounds)
    ]


with tempfile.TemporaryDirectory() as folder:
    import folder_paths

    folder_paths.set_output_directory(folder)
    for name in NAMES:
        seconds(rig.executor(), name, 0)  # imports and caches of the process's first runs
    result = {
        "first": first_prompts(max(3, int(rig.PAIRS) // 3)),
        "again": more_prompts(int(rig.PAIRS)),
        "clock": "CPU" if rig.SIMULATED else "wall-clock",
    }
print("\n" + json.dumps(result))

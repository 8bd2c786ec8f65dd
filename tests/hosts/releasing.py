"""Times the ways to give memory back, in one ComfyUI process; by its own interpreter.

    python releasing.py COMFYUI CPU-OR-DEVICE CHECKPOINT PAIRS SIZE STEPS

Prompts with another seed and text each, in rounds of all ways in changing order; each way has an
executor, so a cache and a model, of its own, and the device to itself. Prints JSON on the last
line: ``clock``; ``rounds``, the seconds of each way; ``loading``, those among them in which weights
went to the device; ``freed``, for each way and part the seconds
from the end of the last node that needs the part until its weights are off the device (``null``:
they stay), in rounds of their own because watching costs time; ``left``, the bytes allocated and
reserved after the prompt.
"""

from __future__ import annotations

import gc
import inspect
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import prompt_rig as rig
from prompt_rig import execution, mm, nodes

STOCK, FREE, NAIVE = "stock", "POST /free", "gc and empty_cache"
POLICIES = {f"Lowtide {policy}": policy for policy in ("off", "pressure", "always")}
NAMES = (STOCK, FREE, NAIVE, *POLICIES)
ENDS = {"CLIPTextEncode": "text encoder", "KSampler": "model", "VAEDecode": "VAE"}
"""The last node that needs each part."""
WATCHES = min(5, int(rig.PAIRS))
POLL = 0.0005
_each_node = execution.execute
_load = mm.LoadedModel.model_load
loading = 0.0


def _timed_load(*args: Any, **kwargs: Any) -> Any:
    global loading
    started = rig.clock()
    try:
        return _load(*args, **kwargs)
    finally:
        loading += rig.clock() - started


async def _tidied(*args: Any, **kwargs: Any) -> Any:
    result = _each_node(*args, **kwargs)
    if inspect.isawaitable(result):
        result = await result
    gc.collect()
    mm.soft_empty_cache()
    return result


class Way:
    """One way to give memory back, with an executor of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.runner = rig.executor()

    def prompt(self, seed: int) -> tuple[float, float]:
        """Seconds of one prompt and of what the way does after it; those of loading among them."""
        global loading
        prompt = rig.graph(seed, POLICIES.get(self.name), f"boat {seed}")
        name = f"{self.name}-{seed}"
        rig.validate(prompt, name)
        gc.collect()
        execution.execute = _tidied if self.name == NAIVE else _each_node
        loading = 0.0
        started = rig.clock()
        try:
            rig.run(self.runner, prompt, name)
            if self.name == FREE:  # what ComfyUI's main loop then does
                mm.unload_all_models()
                self.runner.reset()
                gc.collect()
                mm.soft_empty_cache()
        finally:
            execution.execute = _each_node
        return rig.clock() - started, loading

    def left(self) -> dict[str, int | None]:
        from lowtide.memory import backend

        device = backend.device_of(mm.get_torch_device())
        return {"allocated": backend.allocated(device), "reserved": backend.reserved(device)}


class Watch:
    """When each part's last node ended, and when its weights were off the device after that."""

    current: Watch | None = None

    def __init__(self) -> None:
        self.ended: dict[str, float] = {}
        self.gone: dict[str, float] = {}
        self._stop = threading.Event()

    def _look(self) -> None:
        while not self._stop.wait(POLL):
            now, held = time.perf_counter(), on_device()
            for part in list(self.ended):
                if part in held:
                    self.gone.pop(part, None)
                else:
                    self.gone.setdefault(part, now)

    @contextmanager
    def on(self) -> Iterator[Watch]:
        """Watch the device until a little after the block."""
        thread = threading.Thread(target=self._look)
        thread.start()
        Watch.current = self
        try:
            yield self
            time.sleep(20 * POLL)
        finally:
            Watch.current = None
            self._stop.set()
            thread.join()

    def end_of(self, part: str) -> None:
        """A node that needs the part has ended."""
        self.gone.pop(part, None)
        self.ended[part] = time.perf_counter()

    def seconds(self) -> dict[str, float | None]:
        return {
            part: self.gone[part] - ended if part in self.gone else None
            for part, ended in self.ended.items()
        }


def noted(cls: type, part: str) -> type:
    """The node, saying when it has ended."""

    def call(node: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(cls, cls.FUNCTION)(node, *args, **kwargs)
        finally:
            if Watch.current is not None:
                Watch.current.end_of(part)

    return type(cls.__name__, (cls,), {cls.FUNCTION: call})


def on_device() -> set[str]:
    """The parts that have weights on the device."""
    found = set()
    for entry in list(mm.current_loaded_models):
        patcher = entry.model
        if patcher is None or not patcher.loaded_size():
            continue
        kind = type(patcher.model).__name__.lower()
        found.add("VAE" if "autoenc" in kind or "taesd" in kind else _part(patcher.model))
    return found


def _part(model: Any) -> str:
    return "model" if hasattr(model, "diffusion_model") else "text encoder"


def rounds_of(ways: dict[str, Way], count: int) -> dict[str, Any]:
    found: dict[str, Any] = {"rounds": [], "loading": [], "left": {}}
    for turn in range(count):
        took = {}
        for name in rig.turns(NAMES, turn):
            took[name] = alone(ways[name], 10 + turn)
            found["left"][name] = ways[name].left()
        found["rounds"].append({name: seconds for name, (seconds, _) in took.items()})
        found["loading"].append({name: seconds for name, (_, seconds) in took.items()})
    return found


def alone(way: Way, seed: int) -> tuple[float, float]:
    """The way's prompt after one of its own, with nothing of the others on the device."""
    rig.unload()
    way.prompt(1000 + seed)
    return way.prompt(seed)


def freed(way: Way) -> list[dict[str, float | None]]:
    found = []
    for seed in range(WATCHES):
        rig.unload()
        watch = Watch()
        with watch.on():
            way.prompt(100 + seed)
        found.append(watch.seconds())
    return found


with tempfile.TemporaryDirectory() as folder:
    import folder_paths

    folder_paths.set_output_directory(folder)
    for name, part in ENDS.items():
        nodes.NODE_CLASS_MAPPINGS[name] = noted(nodes.NODE_CLASS_MAPPINGS[name], part)
    ways = {name: Way(name) for name in NAMES}
    for way in ways.values():
        for seed in (1, 2):
            way.prompt(seed)
    mm.LoadedModel.model_load = _timed_load
    result = {
        **rounds_of(ways, int(rig.PAIRS)),
        "freed": {name: freed(way) for name, way in ways.items()},
        "clock": "CPU" if rig.SIMULATED else "wall-clock",
    }
print("\n" + json.dumps(result))

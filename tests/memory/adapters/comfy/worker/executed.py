"""Whole prompts through ComfyUI's own executor, and what a test sees of each node's call.

What runs a node's function, ``execution.get_output_data``, is wrapped here before Lowtide is first
used: so counting and stopping lie inside whatever Lowtide puts around it.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.utils
import execution
import folder_paths
import numpy as np
import torch
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from lowtide.memory.adapters.comfy import executor as followed
from PIL import Image
from subjects import FOLDER, accelerator, unload

import nodes

Graph = dict[str, dict[str, Any]]
IMAGE = "picture.png"

SIM = accelerator()
_files = tempfile.TemporaryDirectory(prefix="lowtide-prompts-")
Kept = Callable[[str], None]


@dataclass
class Watch:
    """What the test does around every node's call and every step of it."""

    counting: bool = False
    resetting: bool = False
    """Reset torch's peaks before each call, as nodes of other packs do."""
    peaks: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Node -> highest peaks allocated and reserved of its calls."""
    calls: list[str] = field(default_factory=list)
    steps: list[tuple[str, int]] = field(default_factory=list)
    before: Kept | None = None
    after: Kept | None = None
    stepped: Callable[[str, int], None] | None = None


WATCH = Watch()


class Server:
    """What the executor tells of its progress; nobody listens."""

    client_id = last_node_id = last_prompt_id = None
    sockets_metadata: dict[str, object] = {}

    def send_sync(self, event: str, data: object, sid: object = None) -> None:
        pass


def _wrapped(original: Any) -> Any:
    signature = inspect.signature(original)

    @functools.wraps(original)
    async def get_output_data(*args: Any, **kwargs: Any) -> Any:
        node = str(signature.bind(*args, **kwargs).arguments["unique_id"])
        WATCH.calls.append(node)
        if WATCH.before is not None:
            WATCH.before(node)
        if WATCH.counting:
            SIM.watch()
        if WATCH.resetting:
            SIM.reset_peaks()
        try:
            result = await original(*args, **kwargs)
            if WATCH.after is not None:
                WATCH.after(node)  # with the node's results in this frame
            return result
        finally:
            if WATCH.counting:
                now = SIM.watched
                held = WATCH.peaks.get(node, (0, 0))
                WATCH.peaks[node] = max(held[0], now[0]), max(held[1], now[1])

    return get_output_data


def _hook(value: int, total: int, preview: object, **more: Any) -> None:
    """As ``main.py`` installs it for a server."""
    node = more.get("node_id") or get_executing_context().node_id
    WATCH.steps.append((node, value))
    if WATCH.stepped is not None:
        WATCH.stepped(node, value)
    mm.throw_exception_if_processing_interrupted()
    get_progress_state().update_progress(node, value, total, preview)


def interrupt() -> None:
    """As the server's route does; whatever looks at it next is stopped."""
    mm.interrupt_current_processing()


def interrupt_now() -> None:
    """Stops whoever calls."""
    mm.interrupt_current_processing()
    mm.throw_exception_if_processing_interrupted()


def runner(kind: str = "CLASSIC") -> execution.PromptExecutor:
    """A new executor, with nothing cached."""
    more: dict[str, object] = {}
    if "cache_args" in inspect.signature(execution.PromptExecutor.__init__).parameters:
        more["cache_args"] = {"lru": 0, "ram": 1.0, "ram_inactive": 1.0}
    return execution.PromptExecutor(Server(), cache_type=execution.CacheType[kind], **more)


def kinds() -> list[str]:
    """The caches an executor may keep by default in some version."""
    return [it for it in ("CLASSIC", "RAM_PRESSURE") if hasattr(execution.CacheType, it)]


def run(one: execution.PromptExecutor, graph: Graph) -> bool:
    """One prompt; whether it succeeded."""
    WATCH.calls.clear()
    WATCH.steps.clear()
    WATCH.peaks.clear()
    mm.interrupt_current_processing(False)
    outputs = [
        node
        for node, it in graph.items()
        if getattr(nodes.NODE_CLASS_MAPPINGS[it["class_type"]], "OUTPUT_NODE", False)
    ]
    one.execute(graph, f"prompt-{id(graph)}", {}, outputs)
    return bool(one.success)


def done(one: execution.PromptExecutor, graph: Graph) -> None:
    """One prompt that has to succeed."""
    if not run(one, graph):
        raise AssertionError(f"the prompt failed: {failure(one)}")


def failure(one: execution.PromptExecutor) -> str:
    """What the prompt's last message says."""
    event, data = one.status_messages[-1]
    return f"{event}: {data.get('exception_message')} in {data.get('node_id')}\n" + "".join(
        data.get("traceback") or ()
    )


def fresh() -> None:
    """Nothing loaded, nothing of Lowtide's in ComfyUI, nothing watched."""
    WATCH.__init__()
    mm.interrupt_current_processing(False)
    followed.uninstall()
    unload()
    SIM.empty_cache()
    SIM.reset_peaks()
    assert (SIM.allocated, SIM.reserved) == (0, 0), (SIM.allocated, SIM.reserved)


def held() -> tuple[int, int]:
    """Bytes allocated and reserved on the device now."""
    return SIM.allocated, SIM.reserved


def _extra(name: str) -> dict[str, type]:
    """Nodes of one of ComfyUI's own files of more nodes, of either kind."""
    module = importlib.import_module(f"comfy_extras.{name}")
    found = dict(getattr(module, "NODE_CLASS_MAPPINGS", {}))
    if hasattr(module, "comfy_entrypoint"):

        async def listed() -> list[type]:
            return await (await module.comfy_entrypoint()).get_node_list()

        found |= {it.GET_SCHEMA().node_id: it for it in asyncio.run(listed())}
    for kind in found.values():
        kind.RELATIVE_PYTHON_MODULE = module.__name__  # as ComfyUI marks what it loads
    return found


def _set_up() -> None:
    execution.get_output_data = _wrapped(execution.get_output_data)
    comfy.utils.set_progress_bar_global_hook(_hook)
    base = Path(_files.name)
    for name in ("input", "output", "temp", "upscale"):
        (base / name).mkdir()
    folder_paths.set_input_directory(str(base / "input"))
    folder_paths.set_output_directory(str(base / "output"))
    folder_paths.set_temp_directory(str(base / "temp"))
    folder_paths.add_model_folder_path("loras", str(FOLDER / "sd15"))
    folder_paths.add_model_folder_path("upscale_models", str(base / "upscale"))
    wave = np.linspace(0, 255, 64 * 64 * 4).reshape(64, 64, 4).astype(np.uint8)
    Image.fromarray(wave, "RGBA").save(base / "input" / IMAGE)
    torch.save(_esrgan(), base / "upscale" / "small.pth")
    pack = sys.modules["lowtide"].NODE_CLASS_MAPPINGS
    more = {**_extra("nodes_upscale_model"), **_extra("nodes_custom_sampler")}
    nodes.NODE_CLASS_MAPPINGS.update({**pack, **more})
    torch.set_num_threads(1)


def _esrgan() -> dict[str, torch.Tensor]:
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(4)
    return ESRGAN(num_filters=8, num_blocks=1, scale=2).state_dict()


with torch.inference_mode(False):
    _set_up()

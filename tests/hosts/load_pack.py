"""Loads the pack by ComfyUI's own loader under several folder names and reports as JSON.

    python load_pack.py COMFYUI BASE FOLDER...

Run by ComfyUI's own interpreter, on the CPU, with no server running. Seconds are the process's own
CPU time, which other programs on the machine do not lengthen; torch and ComfyUI are imported first.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
import types

comfyui, base, *folders = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu", "--base-directory", base]
sys.path.insert(0, comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

# As main.py does, before ``nodes`` puts a folder with another ``utils`` in front.
import utils.extra_config  # noqa: E402, F401, I001
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy_execution.progress  # noqa: E402, F401
import execution  # noqa: E402, F401
import nodes  # noqa: E402
import server  # noqa: E402

HOST = ("comfy", "comfy_execution", "comfy_api", "execution", "nodes", "server", "folder_paths")
HOST += ("latent_preview", "app", "torch", "aiohttp", "logging", "gc", "os", "sys")
# These are what a node pack may add to.
OPEN = {("sys", "path"), ("sys", "modules"), ("sys", "last_value")}
HEAVY = ("diffusers", "accelerate", "transformers", "peft", "xformers")


def snapshot() -> dict[tuple[str, str], object]:
    """Every attribute of ComfyUI's and torch's modules, and of the classes they define."""
    seen: dict[tuple[str, str], object] = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] not in HOST or not isinstance(module, types.ModuleType):
            continue
        for name, value in list(vars(module).items()):
            # type(): torch has module attributes that warn as soon as __class__ is read.
            kind = type(value)
            if issubclass(kind, types.ModuleType) or name.startswith("__"):
                continue
            seen[module_name, name] = value
            if issubclass(kind, type) and value.__module__ == module_name:
                for attribute, member in list(vars(value).items()):
                    if attribute not in ("__doc__", "__abstractmethods__"):
                        seen[module_name, f"{name}.{attribute}"] = member
    return seen


def differences(before: dict[tuple[str, str], object]) -> list[str]:
    missing = object()
    after = snapshot()
    known = {module for module, _ in before}
    changed = [key for key, value in before.items() if after.get(key, missing) is not value]
    added = [key for key in after if key not in before and key[0] in known]
    return sorted(".".join(key) for key in {*changed, *added} - OPEN)


class Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO + 1)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")


async def main() -> list[dict[str, object]]:
    server.PromptServer(asyncio.get_running_loop())
    listener = Listener()
    logging.getLogger().addHandler(listener)
    results = []
    for folder in folders:
        ours = set(nodes.NODE_CLASS_MAPPINGS)
        before = snapshot()
        heavy = {name for name in HEAVY if name in sys.modules}
        listener.lines.clear()
        began = time.process_time()
        path = os.path.join(base, "custom_nodes", folder)
        loaded = await nodes.load_custom_node(path, module_parent="custom_nodes")
        seconds = time.process_time() - began
        results.append(
            {
                "folder": folder,
                "loaded": loaded,
                "seconds": seconds,
                "warnings": list(listener.lines),
                "changed": differences(before),
                "heavy": sorted({name for name in HEAVY if name in sys.modules} - heavy),
                "nodes": sorted(set(nodes.NODE_CLASS_MAPPINGS) - ours),
            }
        )
        for name in results[-1]["nodes"]:
            del nodes.NODE_CLASS_MAPPINGS[name]
    return results


print("RESULT" + json.dumps(asyncio.run(main())))

"""A ComfyUI process that answers calls: one JSON object a line in, one a line out.

    python serve.py COMFYUI CPU-OR-ACCELERATOR

By ComfyUI's own interpreter, in this folder. A call names a module beside this file, a function of
it and its arguments; the answer holds its value, or the traceback. What ComfyUI prints goes to
stderr. The process ends with its input.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path

comfyui, where = sys.argv[1:3]
sys.argv = [sys.argv[0], *(["--cpu"] if where == "cpu" else [])]
sys.path.insert(0, comfyui)
answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import logging  # noqa: E402

import comfy.sd  # noqa: E402
import torch  # noqa: E402

import nodes  # noqa: E402, F401  ComfyUI's

logging.getLogger().setLevel(logging.WARNING)

ROOT = Path(__file__).resolve().parents[5]


def load_pack() -> None:
    """The checkout as the package ``lowtide``, whatever its folder is called."""
    spec = importlib.util.spec_from_file_location(
        "lowtide", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    sys.modules["lowtide"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def answer(call: dict[str, object]) -> dict[str, object]:
    try:
        module = importlib.import_module(str(call["module"]))
        with torch.inference_mode():  # as ComfyUI runs its nodes
            return {"value": getattr(module, str(call["function"]))(**call["arguments"])}
    except Exception:  # noqa: BLE001  the caller learns of it, and the process lives on
        return {"error": traceback.format_exc()}


def without_cuda_kernels() -> None:
    """comfy_kitchen's CUDA kernels need a driver, which the simulated CUDA device has not."""
    if importlib.util.find_spec("comfy_kitchen") is not None:
        import comfy_kitchen

        comfy_kitchen.registry.disable("cuda")


load_pack()
if where == "cuda":
    without_cuda_kernels()
for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), file=answers, flush=True)

"""Runs the cases of one file inside a real ComfyUI and reports as JSON on the last line.

    python run.py COMFYUI CPU-OR-ACCELERATOR CASES.py

By ComfyUI's own interpreter. On the accelerator, PYTHONPATH and LOWTIDE_SIM bring the simulated
one in. Each ``case_*`` function is one test; it fails by raising,
and is skipped by raising ``unittest.SkipTest``.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
import unittest
from pathlib import Path

comfyui, where, cases = sys.argv[1:4]
sys.argv = [sys.argv[0], *(["--cpu"] if where == "cpu" else [])]
sys.path.insert(0, comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import logging  # noqa: E402

logging.disable(logging.INFO)

import comfy.sd  # noqa: E402

ROOT = Path(__file__).resolve().parents[5]


def load(name: str, path: Path, package: bool = False) -> object:
    places = [str(path.parent)] if package else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=places)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


load("lowtide", ROOT / "__init__.py", package=True)
sys.path.insert(0, str(Path(__file__).parent))
module = load("cases", Path(cases))
results: dict[str, str] = {}
for name, case in vars(module).items():
    if name.startswith("case_"):
        try:
            case()
            results[name] = "passed"
        except unittest.SkipTest as reason:
            results[name] = f"skipped: {reason}"
        except Exception:  # noqa: BLE001  a failing case must not hide the others
            results[name] = traceback.format_exc()
print("\n" + json.dumps(results))

"""Runs files of cases inside a real ComfyUI, each in a process of its own.

    python run.py COMFYUI CPU-OR-ACCELERATOR CASES.py     prints the outcomes as JSON
    python run.py COMFYUI CPU-OR-ACCELERATOR              serves: reads "CASES.py OUTCOMES.json"
                                                          lines, answers each with an exit code

By ComfyUI's own interpreter. On the accelerator, PYTHONPATH and LOWTIDE_SIM bring the simulated
one in. ComfyUI is imported once; every file runs in a fork of that. Each ``case_*`` function is one
test; it fails by raising, and is skipped by raising ``unittest.SkipTest``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
import traceback
import unittest
from pathlib import Path

comfyui, where, *files = sys.argv[1:4]
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


def outcomes(cases: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, case in list(vars(load("cases", cases)).items()):
        if name.startswith("case_"):
            started = time.perf_counter()
            try:
                case()
                found[name] = "passed"
            except unittest.SkipTest as reason:
                found[name] = f"skipped: {reason}"
            except Exception:  # noqa: BLE001  a failing case must not hide the others
                found[name] = traceback.format_exc()
            print(f"{time.perf_counter() - started:6.1f} s  {name}", file=sys.stderr)
    return found


def serve() -> None:
    """Answers go to what was standard output; whatever the cases print goes to the log."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        cases, result = line.split()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                Path(result).write_text(json.dumps(outcomes(Path(cases))), encoding="utf-8")
                code = 0
            except BaseException:  # noqa: BLE001  a fork must not go on as its parent
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


load("lowtide", ROOT / "__init__.py", package=True)
sys.path.insert(0, str(Path(__file__).parent))
if files:
    print("\n" + json.dumps(outcomes(Path(files[0]))))
else:
    serve()

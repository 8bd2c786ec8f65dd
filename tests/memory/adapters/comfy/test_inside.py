"""The cases of ``inside/``, each run in every real ComfyUI that is found."""

from __future__ import annotations

import ast
import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lowtide.tests.hosts.comfyui import Installation, survey

INSIDE = Path(__file__).parent / "inside"
SITE = Path(__file__).resolve().parents[3] / "accelerator" / "site"
PLACES = {
    "residency": ("cpu", "npu"),
    "rooms": ("cpu", "npu"),
    "tiles": ("npu",),
    "strips": ("npu",),
    "vae_copies": ("cpu", "npu"),
    "video": ("npu",),
    "idle": ("npu",),
    "hooks": ("cpu",),
    "hooked": ("npu",),
    "applied": ("npu",),
    "spans": ("npu",),
    "between": ("npu",),
    "moments": ("npu",),
    "copies": ("npu", "cuda"),
    "images": ("cpu",),
    "inference": ("npu",),
    "copies_returned": ("npu", "cuda"),
    "rescued": ("npu",),
    "asking": ("npu",),
    "asked_for": ("npu",),
    "overlay_rows": ("npu", "cuda"),
    "overlay_messages": ("npu", "cuda"),
    "overlay_fit": ("npu", "cuda"),
    "overlay_headers": ("npu",),
    "receipts": ("npu",),
    "swallowed": ("npu",),
    "pages": ("npu",),
    "pages_core": ("npu",),
    "pages_counted": ("npu",),
    "packs": ("cpu",),
    "flags": ("cpu",),
    "attending": ("npu",),
    "chunks": ("npu",),
    "feeding": ("cpu",),
    "float8": ("cpu", "npu"),
    "float8_device": ("npu",),
    "float8_life": ("npu",),
    "float8_shapes": ("cpu",),
    "budgets": ("npu",),  # on cuda: the matrix
    "measurements": ("npu",),
    "control": ("npu",),
    "dual": ("npu",),
    "loras": ("npu",),
    "turns": ("npu",),
    "questions": ("npu",),
    "histories": ("npu",),
    "profiling": ("npu", "cuda"),
}
LONG = {"attending", "chunks", "profiling", "strips", "tiles", "vae_copies", "video"}
"""Files that take their time and touch no seam that differs between versions of ComfyUI."""

SECONDS = 600
"""Longest a file may take."""
RUNNERS = 2
"""Processes at once; each takes about half a gigabyte."""

INSTALLATIONS, REFUSED = survey()


def _cases() -> list[Any]:
    found = []
    for file, places in PLACES.items():
        tree = ast.parse((INSIDE / f"{file}.py").read_text(encoding="utf-8"))
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        found += [
            (file, place, name) for place in places for name in names if name.startswith("case_")
        ]
    found.sort(key=lambda case: case[1])  # a place's process serves all its files
    return [
        pytest.param(*case, marks=[pytest.mark.long] if case[0] in LONG else []) for case in found
    ]


class Runner:
    """A process that has ComfyUI imported and runs one file of cases after the other."""

    def __init__(self, installation: Installation, place: str) -> None:
        env = {**os.environ, "LOWTIDE_PROFILE": "off"}  # cases count what is copied
        if place != "cpu":
            env |= {"PYTHONPATH": str(SITE), "LOWTIDE_SIM": place, "LOWTIDE_SIM_CAPACITY": "4G"}
        self.folder = tempfile.TemporaryDirectory(prefix="lowtide-inside-")
        self.log = Path(self.folder.name) / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [installation.python, INSIDE / "run.py", installation.root, place],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def run(self, file: str) -> dict[str, str]:
        """The outcome of every case of a file, by name."""
        assert self.process.stdin is not None and self.process.stdout is not None
        outcomes = Path(self.folder.name) / f"{file}.json"
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{INSIDE / file}.py {outcomes}\n")
            self.process.stdin.flush()
            if select.select([self.process.stdout], [], [], SECONDS)[0]:
                answer = self.process.stdout.readline().strip()
        if answer != "0":
            end = self.log.read_text(encoding="utf-8", errors="replace")[-4000:]
            raise RuntimeError(f"{file} did not run ({answer or 'no answer'}):\n{end}")
        return json.loads(outcomes.read_text(encoding="utf-8"))

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.folder.cleanup()


_runners: dict[tuple[Installation, str], Runner] = {}


def _close_all() -> None:
    for runner in _runners.values():
        runner.close()
    _runners.clear()


atexit.register(_close_all)


@cache
def _results(installation: Installation, place: str, file: str) -> dict[str, str]:
    key = (installation, place)
    if key not in _runners:
        if len(_runners) >= RUNNERS:
            _close_all()
        _runners[key] = Runner(*key)
    try:
        return _runners[key].run(file)
    except RuntimeError:
        _runners.pop(key).close()
        raise


@pytest.mark.host
@pytest.mark.skipif(not INSTALLATIONS, reason="; ".join(REFUSED))
@pytest.mark.parametrize(("file", "place", "name"), _cases())
@pytest.mark.parametrize("installation", INSTALLATIONS, ids=str)
def test_inside(installation: Installation, file: str, place: str, name: str) -> None:
    outcome = _results(installation, place, file)[name]
    if outcome.startswith("skipped: "):
        pytest.skip(outcome)
    assert outcome == "passed", outcome

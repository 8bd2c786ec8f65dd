"""The cases of ``inside/``, each run in every real ComfyUI that is found."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from functools import cache
from pathlib import Path

import pytest
from lowtide.tests.hosts.comfyui import Installation, survey

INSIDE = Path(__file__).parent / "inside"
SITE = Path(__file__).resolve().parents[3] / "accelerator" / "site"
PLACES = {
    "residency": ("cpu", "npu"),
    "tiles": ("cpu", "npu"),
    "strips": ("cpu", "npu"),
    "vae_copies": ("cpu", "npu"),
    "video": ("npu",),
    "idle": ("npu",),
    "hooks": ("cpu",),
    "applied": ("npu",),
    "spans": ("npu",),
    "between": ("npu",),
    "rescued": ("npu",),
    "pages": ("npu",),
    "packs": ("cpu", "npu"),
    "attending": ("cpu", "npu"),
    "chunks": ("cpu", "npu"),
    "feeding": ("cpu",),
    "float8": ("cpu", "npu"),
    "float8_device": ("npu",),
    "float8_life": ("cpu", "npu"),
    "float8_shapes": ("cpu",),
    "budgets": ("npu", "cuda"),
    "control": ("npu",),
    "loras": ("cpu", "npu"),
    "turns": ("npu",),
}

INSTALLATIONS, REFUSED = survey()


def _cases() -> list[tuple[str, str, str]]:
    found = []
    for file, places in PLACES.items():
        tree = ast.parse((INSIDE / f"{file}.py").read_text(encoding="utf-8"))
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        found += [
            (file, place, name) for place in places for name in names if name.startswith("case_")
        ]
    return found


@cache
def _results(installation: Installation, place: str, file: str) -> dict[str, str]:
    env = dict(os.environ)
    if place != "cpu":
        env |= {"PYTHONPATH": str(SITE), "LOWTIDE_SIM": place, "LOWTIDE_SIM_CAPACITY": "4G"}
    done = subprocess.run(
        [installation.python, INSIDE / "run.py", installation.root, place, INSIDE / f"{file}.py"],
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"{file} did not run:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(lines[-1])


@pytest.mark.host
@pytest.mark.skipif(not INSTALLATIONS, reason="; ".join(REFUSED))
@pytest.mark.parametrize("installation", INSTALLATIONS, ids=str)
@pytest.mark.parametrize(("file", "place", "name"), _cases())
def test_inside(installation: Installation, file: str, place: str, name: str) -> None:
    outcome = _results(installation, place, file)[name]
    if outcome.startswith("skipped: "):
        pytest.skip(outcome)
    assert outcome == "passed", outcome

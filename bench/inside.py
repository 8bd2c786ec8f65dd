"""Scripts that time whole prompts inside every ComfyUI found, each by its own interpreter."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..memory.errors import DeviceError
from ..memory.learning import SWITCH
from ..memory.profiles import SWITCH as MEASURING
from .places import Place

_TIMEOUT_SECONDS = 3600.0
_CAPACITY = "4G"


def in_every_comfyui(
    script: str, place: Place, *, pairs: int, size: int, steps: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Version and result of ``tests/hosts/<script>.py`` in each ComfyUI, on its small checkpoint.

    Raises:
        DeviceError: there is no ComfyUI, no checkout's test rig, or it failed there.
    """
    root = __package__.rpartition(".")[0]
    try:
        comfyui = import_module(f"{root}.tests.hosts.comfyui")
        checkpoints = import_module(f"{root}.tests.hosts.checkpoints")
    except ModuleNotFoundError as error:
        raise DeviceError(
            f"prompts are timed by the source checkout's test rig ({error}); run "
            f"`python -m lowtide` on a checkout"
        ) from None
    found, refused = comfyui.survey()
    if not found:
        raise DeviceError(
            f"no ComfyUI found to measure in; set COMFYUI_PATH to its folder ({'; '.join(refused)})"
        )
    for installation in found:
        file = checkpoints.checkpoint(installation, "small").file
        yield installation.version, _run(installation, script, place, file, (pairs, size, steps))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Bounds of a 95% confidence interval of the median, by ranks: no assumption on the noise."""
    ordered = sorted(values)
    reach = 0.98 * math.sqrt(len(ordered))
    first = max(0, math.floor(len(ordered) / 2 - reach))
    return ordered[first], ordered[-1 - first]


def _run(
    installation: Any, script: str, place: Place, file: Path, numbers: Sequence[int]
) -> dict[str, Any]:
    tests = Path(__file__).resolve().parents[1] / "tests"
    kept = {name: value for name, value in os.environ.items() if name != SWITCH}
    env = {**kept, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", MEASURING: "off"}
    if place.simulated is not None:
        env["PYTHONPATH"] = str(tests / "accelerator" / "site")
        env |= {"LOWTIDE_SIM": place.simulated.flavour, "LOWTIDE_SIM_CAPACITY": _CAPACITY}
        # Emptying a device's cache costs it nothing later; the host would zero fresh pages.
        env["LOWTIDE_SIM_KEEP_PAGES"] = "1"
        # The accelerator may have to be compiled by that interpreter: ninja is in either venv.
        tools = [installation.python.parent, Path(sys.executable).parent]
        env["PATH"] = os.pathsep.join([*map(str, tools), env.get("PATH", "")])
    command = [installation.python, tests / "hosts" / f"{script}.py", installation.root]
    command += [place.device.type, file, *numbers]
    with tempfile.TemporaryDirectory(prefix="lowtide-bench-") as home:
        done = subprocess.run(
            [str(part) for part in command],
            env={**env, "LOWTIDE_HOME": home},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = "\n".join(done.stderr.splitlines()[-5:])
        raise DeviceError(f"ComfyUI {installation.version} did not run the prompts: {last}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result

"""The native example graph in a real ComfyUI, on the simulated accelerator.

The rig that boots ComfyUI belongs to the checkout's tests; without it, or without a ComfyUI, there
is a reason instead of a table.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .levels import DEFAULT_LEVELS
from .measure import Row
from .places import Place

SIZE = 256
STEPS = 4
_CAPACITY = "4G"
_CHECKPOINT = "random.safetensors"
_TIMEOUT_SECONDS = 300.0


@dataclass
class Native:
    """The rows measured in ComfyUI, or why there are none."""

    version: str = ""
    rows: list[Row] = field(default_factory=list)
    reason: str = ""


def native_rows(place: Place, out: Path) -> Native:
    """Run the native example at all four levels in the newest ComfyUI found.

    Images go to ``out`` as ``native-<level>.png``. A ComfyUI that does not boot or fails at a
    graph is a reason, not an exception: the rest of the demo stands without it.
    """
    if place.simulated is None:
        return Native(reason="it is measured on the simulated accelerator only")
    root = __package__.rpartition(".")[0]
    try:
        hosts = {
            name: import_module(f"{root}.tests.hosts.{name}")
            for name in ("checkpoints", "comfyui", "graphs", "server")
        }
    except ModuleNotFoundError as error:
        return Native(reason=f"the rig that boots it comes with the source checkout ({error})")
    found, refused = hosts["comfyui"].survey()
    if not found:
        return Native(reason=f"no ComfyUI found; set COMFYUI_PATH ({'; '.join(refused)})")
    installation = found[-1]
    try:
        return _measure(hosts, installation, place.simulated.flavour, out)
    except (OSError, RuntimeError) as error:
        return Native(installation.version, reason=f"ComfyUI {installation.version}: {error}")


def _measure(hosts: dict[str, Any], installation: Any, flavour: str, out: Path) -> Native:
    result = Native(installation.version)
    total = len(DEFAULT_LEVELS) + 1
    with tempfile.TemporaryDirectory() as folder, tqdm(total=total, unit="run") as bar:
        bar.set_description(f"ComfyUI {installation.version} starts")
        server = hosts["server"].Server(installation, flavour, Path(folder), capacity=_CAPACITY)
        models = Path(folder) / "models" / "checkpoints"
        models.mkdir(parents=True)
        (models / _CHECKPOINT).symlink_to(
            hosts["checkpoints"].checkpoint(installation, "small").file
        )
        server.start()
        try:
            graph = hosts["graphs"].native
            server.queue(graph(_CHECKPOINT, "none", size=SIZE, steps=1), _TIMEOUT_SECONDS)
            bar.update()
            reference: np.ndarray[Any, Any] | None = None
            for level in DEFAULT_LEVELS:
                bar.set_description(f"ComfyUI {level}")
                row = Row(level)
                job = graph(_CHECKPOINT, level, size=SIZE, steps=STEPS)
                image = _run(server, job, row, out)
                if image is not None:
                    reference = image if reference is None else reference
                    row.difference = float(np.abs(image - reference).max())
                    if result.rows and result.rows[0].seconds and row.seconds:
                        row.ratio = row.seconds / result.rows[0].seconds
                    elif not result.rows:
                        row.ratio = 1.0
                result.rows.append(row)
                bar.update()
        finally:
            server.stop()
    return result


def _run(server: Any, graph: Any, row: Row, out: Path) -> np.ndarray[Any, Any] | None:
    """One prompt with nothing loaded before it; the image as float32 in 0..1."""
    server.free()
    server.reset_counters()
    started = time.perf_counter()
    run = server.queue(graph, _TIMEOUT_SECONDS)
    row.seconds = time.perf_counter() - started
    figures = server.counters()
    if not run.succeeded:
        row.error = run.error.splitlines()[0] if run.error else "the prompt did not finish"
        return None
    row.peak_allocated, row.peak_reserved = figures["peak_allocated"], figures["peak_reserved"]
    row.left_allocated, row.left_reserved = figures["allocated"], figures["reserved"]
    row.h2d, row.d2h = figures["traffic"]["h2d"], figures["traffic"]["d2h"]
    saved = next(e for o in run.outputs.values() for e in o.get("images", ()))
    file = server.base / saved["type"] / saved["subfolder"] / saved["filename"]
    shutil.copy(file, out / f"native-{row.name}.png")
    image: np.ndarray[Any, Any] = server.images(run)[0].astype(np.float32) / 255
    return image

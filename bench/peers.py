"""Lowtide's levels beside diffusers' own modes and other packages, on one pipeline."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..memory import backend, child
from ..memory.errors import ConfigError
from ..memory.levels import OptimizationLevel
from . import places
from .measure import Row
from .models import Model
from .peer_row import LEVEL
from .peer_setups import DIFFUSERS, PACKAGES
from .table import Unit, difference, remarks, render

MODEL = "sdxl-small"
_PATIENCE_SECONDS = 1800


@dataclass
class PeerBench:
    """Rows of all systems, the first unoptimised; ``missing`` are packages not installed."""

    model: Model
    size: int
    steps: int
    dtype: str
    device: str
    notes: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The table and its notes."""
        unit = Unit(self.rows)
        headers = [
            "system",
            f"peak allocated, {unit.name}",
            "peak reserved",
            "to device",
            "from device",
            "pinned host",
            "left allocated / reserved",
            "difference",
        ]
        lines = [
            [
                row.name,
                unit.of(row.peak_allocated),
                unit.of(row.peak_reserved),
                unit.of(row.h2d),
                unit.of(row.d2h),
                unit.of(row.pinned),
                unit.pair(row.left_allocated, row.left_reserved),
                difference(row.difference),
            ]
            for row in self.rows
        ]
        head = (
            f"{self.model.key}: {self.size} px, {self.steps} steps, {self.dtype}, random weights, "
            f"on {self.device}; a process each, second run"
        )
        left = "Left: as the run ends; in Lowtide's rows after its release."
        absent = [f"Not installed, so not measured: {', '.join(self.missing)}."]
        notes = [*remarks(self.rows), left, *(absent if self.missing else []), *self.notes]
        return "\n\n".join([head, render(headers, lines), *notes])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; bytes and seconds."""
        return {
            "model": self.model.key,
            "size": self.size,
            "steps": self.steps,
            "dtype": self.dtype,
            "device": self.device,
            "torch": torch.__version__,
            "rows": [row.to_dict() for row in self.rows],
            "not_installed": self.missing,
            "notes": list(self.notes),
        }


def bench_peers(
    model: Model,
    *,
    size: int,
    steps: int,
    dtype: str,
    levels: Sequence[OptimizationLevel],
    where: Any,
) -> PeerBench:
    """Measure every system that is installed, each in a process of its own.

    Args:
        where: has ``device``, ``simulate`` and ``capacity`` as the command line gives them;
            without any the best accelerator, else the simulated one in its CUDA flavour, for
            which the packages were written.

    Raises:
        ConfigError: another model than ``sdxl-small``.
    """
    if model.key != MODEL:
        raise ConfigError(f"--peers compares on one pipeline; add --model {MODEL}")
    device, simulate = where.device, where.simulate
    if device is None and simulate is None and not backend.available_types():
        simulate = "cuda"
    name = f"{simulate} (simulated)" if simulate else str(backend.device_of(device))
    notes = (places.NOT_COUNTED,) if simulate else ()
    bench = PeerBench(model, size, steps, dtype, name, notes)
    bench.missing = list(dict.fromkeys(str(p.package) for p in PACKAGES if not p.installed))
    names = [peer.name for peer in (*DIFFUSERS, *PACKAGES) if peer.installed]
    names += [f"{LEVEL}{level.value}" for level in levels]
    job = ["--pipeline", model.pipeline, "--dtype", dtype, "--size", str(size)]
    job += ["--steps", str(steps)]
    for option, value in (
        ("--device", device),
        ("--simulate", simulate),
        ("--capacity", where.capacity),
    ):
        job += [option, value] if value else []
    reference: torch.Tensor | None = None
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(names), unit="system") as bar:
        for row_name in names:
            bar.set_description(row_name)
            row, image = _measure(row_name, job, Path(folder))
            reference = image if reference is None else reference
            if image is not None and reference is not None:
                row.difference = float((image - reference).abs().max())
            bench.rows.append(row)
            bar.update()
    return bench


def _measure(name: str, job: list[str], folder: Path) -> tuple[Row, torch.Tensor | None]:
    """A row by a process of its own; a process that died is the row's error."""
    figures, picture = folder / "row.json", folder / "image.pt"
    for stale in (figures, picture):
        stale.unlink(missing_ok=True)
    files = ["--row", str(figures), "--image", str(picture)]
    try:
        done = subprocess.run(
            child.command("bench.peer_row", "--name", name, *job, *files),
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Row(name, error=f"gave no result within {_PATIENCE_SECONDS} s"), None
    if not figures.exists():
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        last = said[-1] if said else "said nothing"
        return Row(name, error=f"its process ended with status {done.returncode}: {last}"), None
    row = Row(**json.loads(figures.read_text(encoding="utf-8")))
    image = torch.load(picture, weights_only=True) if picture.exists() else None
    return row, image

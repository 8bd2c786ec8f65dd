"""``python -m lowtide demo``: the example graph at every level, with a table, a chart and images.

Without ComfyUI the diffusers graph runs through the headless runner; where a ComfyUI is found the
native graph runs in it as well.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..memory import backend
from ..memory.errors import ConfigError
from ..memory.monitor import MemoryMonitor
from .chart import WITHOUT_MATPLOTLIB, write_chart
from .graph import Graph, run_graph
from .images import output_nodes
from .levels import DEFAULT_LEVELS
from .measure import Row, compare, take
from .native import native_rows
from .places import Place
from .table import level_table, remarks

EXAMPLES = Path(__file__).resolve().parent.parent / "example_workflows"
DIFFUSERS_GRAPH = EXAMPLES / "lowtide_diffusers_api.json"
PIPELINE = "tiny-sdxl"
SIZE = 256
STEPS = 4


class _Steps:
    """Moves the progress bar with the denoising steps of the measured runs."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.counting = False

    def step(self, done: int, total: int, latents: Any) -> None:
        if self.counting:
            self.bar.update()

    def check(self) -> None:
        """Nobody stops the demo but with Ctrl+C."""


def run_demo(place: Place, out: Path) -> int:
    """Run the demo at ``place`` and write its results to ``out``; gives the exit status.

    Raises:
        ConfigError: nodes would choose another device than ``place``.
    """
    if backend.device_of() != place.device:
        raise ConfigError(
            f"the nodes run on {backend.device_of()}, the best device here, not on {place.device}; "
            "leave out --simulate"
        )
    out.mkdir(parents=True, exist_ok=True)
    rows = diffusers_rows(place, out)
    title = (
        f"{PIPELINE} with random weights, {SIZE} px, {STEPS} steps, on {place.name}; "
        "the whole example graph, loading included"
    )
    timing = "Time ratios are against none, after a warm-up of each level."
    print("\n\n".join([title, level_table(rows, {}), *remarks(rows), timing, *place.notes]))
    drawn = write_chart(rows, f"{PIPELINE}, {SIZE} px, on {place.name}", out / "levels.png")
    if not drawn:
        print(WITHOUT_MATPLOTLIB)
    native = native_rows(place, out)
    if native.reason:
        print(f"\nThe native graph was not run: {native.reason}.")
    else:
        print(f"\nThe native graph in ComfyUI {native.version}, first run of each level:\n")
        print("\n\n".join([level_table(native.rows, {}), *remarks(native.rows)]))
    figures = {
        "device": str(place.device),
        "rows": [row.to_dict() for row in rows],
        "native": [row.to_dict() for row in native.rows],
    }
    (out / "levels.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"\nIn {out}: levels.json, <level>.png{', levels.png' if drawn else ''}")
    return 1 if any(row.error for row in (*rows, *native.rows)) else 0


def diffusers_rows(place: Place, out: Path, *, size: int = SIZE, steps: int = STEPS) -> list[Row]:
    """The diffusers example graph at all four levels, on a tiny pipeline; images go to ``out``."""
    graph = json.loads(DIFFUSERS_GRAPH.read_text(encoding="utf-8"))
    rows: list[Row] = []
    reference: torch.Tensor | None = None
    total = steps * len(DEFAULT_LEVELS)
    with _models_folder() as folder, tqdm(total=total, unit="step") as bar:
        for level in DEFAULT_LEVELS:
            bar.set_description(level)
            row = Row(level)
            rows.append(row)
            image = _run_level(place, graph, folder, row, (size, steps), _Steps(bar), out)
            if image is not None:
                reference = image if reference is None else reference
                compare(row, rows[0], image, reference)
    return rows


@contextmanager
def _models_folder() -> Iterator[Path]:
    """A temporary models folder the loader node looks in, with one tiny pipeline."""
    from ..memory.adapters.models_folder import add_root, remove_root
    from ..memory.adapters.synthetic import write_pipeline

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_pipeline(root / PIPELINE, PIPELINE)
        add_root(root)
        try:
            yield root
        finally:
            remove_root(root)


def _run_level(
    place: Place,
    graph: Graph,
    folder: Path,
    row: Row,
    size_and_steps: tuple[int, int],
    progress: _Steps,
    out: Path,
) -> torch.Tensor | None:
    from ..memory.adapters.progress import listening
    from ..nodes import NODE_CLASS_MAPPINGS

    size, steps = size_and_steps
    images: list[torch.Tensor] = []
    written = folder / "images"
    classes = {**NODE_CLASS_MAPPINGS, **output_nodes(written, images.append)}
    try:
        with listening(progress):
            with MemoryMonitor(place.device, release_on_exit=False) as first:
                run_graph(patched(graph, row.name, size, 1), classes)
            row.setup_peak = first.peak_allocated
            before = place.counters()
            progress.counting = True
            with MemoryMonitor(place.device, release_on_exit=False) as monitor:
                started = time.perf_counter()
                run_graph(patched(graph, row.name, size, steps), classes)
                backend.synchronize(place.device)
                row.seconds = time.perf_counter() - started
        take(row, monitor, before, place.counters())
    except torch.OutOfMemoryError as error:
        row.error = f"out of memory: {str(error).splitlines()[0]}"
        return None
    row.left_allocated = backend.allocated(place.device)
    row.left_reserved = backend.reserved(place.device)
    last = max(written.glob(f"{row.name}_*.png"))
    shutil.move(last, out / f"{row.name}.png")
    return images[-1]


def patched(graph: Graph, level: str, size: int, steps: int) -> dict[str, dict[str, Any]]:
    """The example graph with the demo's pipeline, level, size and steps in its widgets."""
    changes: dict[str, dict[str, Any]] = {
        "LowtideLoadDiffusersPipeline": {"folder": PIPELINE},
        "LowtideMemoryLevelSelector": {"level": level},
        "LowtideGenerate": {"width": size, "height": size, "steps": steps},
        "SaveImage": {"filename_prefix": level},
    }
    return {
        node: {
            **entry,
            "inputs": {**entry.get("inputs", {}), **changes.get(entry["class_type"], {})},
        }
        for node, entry in graph.items()
    }

"""One row of the peers' table, in a process of its own: packages patch torch for good.

Set up, a full run, then the measured full run: what streams learn on the first run is
known by then, for everybody.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..memory import backend
from ..memory.cleanup import release
from ..memory.levels import OptimizationLevel
from ..memory.monitor import MemoryMonitor
from . import places
from .measure import Row, host_peak, take
from .peer_setups import PEERS

LEVEL = "Lowtide "
"""A row of this name and a level is Lowtide's."""


def main(arguments: Sequence[str]) -> int:
    """Measure the row named on the command line; figures go to ``--row``, the image to a file."""
    options = _parser().parse_args(arguments)
    row, image = measure_row(options)
    options.row.write_text(json.dumps(row.to_dict()), encoding="utf-8")
    if image is not None:
        torch.save(image, options.image)
    return 0


def measure_row(options: argparse.Namespace) -> tuple[Row, torch.Tensor | None]:
    """The row's figures and its image; an error of a package's own is the row's result."""
    from ..memory.adapters.synthetic import build, run

    place = places.choose(options.device, options.simulate, options.capacity)
    row = Row(options.name)
    try:
        with MemoryMonitor(place.device, release_on_exit=False) as first:
            held = _set_up(options.name, build(options.pipeline, options.dtype), place.device)
            pipe = getattr(held, "pipeline", held) if _is_level(options.name) else held
            run(pipe, size=options.size, steps=options.steps)
        row.setup_peak = first.peak_allocated
        before = place.counters()
        with MemoryMonitor(place.device, release_on_exit=False) as monitor:
            started = time.perf_counter()
            image = run(pipe, size=options.size, steps=options.steps)
            backend.synchronize(place.device)
            row.seconds = time.perf_counter() - started
        take(row, monitor, before, place.counters())
        if _is_level(options.name):
            release(held, device=place.device)
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, OSError) as error:
        if _is_level(options.name):
            raise
        row.error = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        return row, None
    row.left_allocated = backend.allocated(place.device)
    row.left_reserved = backend.reserved(place.device)
    row.host_peak = host_peak()
    return row, image


def _is_level(name: str) -> bool:
    return name.startswith(LEVEL)


def _set_up(name: str, pipe: Any, device: torch.device) -> Any:
    if not _is_level(name):
        return PEERS[name].setup(pipe, device) or pipe
    from ..memory.optimizer import MemoryOptimizer

    optimizer = MemoryOptimizer(OptimizationLevel.parse(name.removeprefix(LEVEL)), device=device)
    optimizer.optimize_pipeline(pipe)
    return optimizer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    for name in ("--name", "--pipeline", "--dtype"):
        parser.add_argument(name, required=True)
    for name in ("--size", "--steps"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--device", "--simulate", "--capacity"):
        parser.add_argument(name)
    for name in ("--row", "--image"):
        parser.add_argument(name, type=Path, required=True)
    return parser

"""One prompt from an empty device: its result, its images, and what the accelerator counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .server import Figures, Graph, Run, Server

MIB = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """``images`` is empty where the run failed; ``figures`` are those at its end."""

    run: Run
    images: np.ndarray
    figures: Figures

    @property
    def peak(self) -> int:
        """Highest bytes allocated at any moment of the prompt (not on the CPU)."""
        return self.figures["peak_allocated"]

    @property
    def left(self) -> tuple[int, int]:
        """Bytes allocated and reserved once the prompt is over (not on the CPU)."""
        return self.figures["allocated"], self.figures["reserved"]


def measure(server: Server, graph: Graph) -> Outcome:
    """Frees everything, restarts the counters, runs the graph."""
    server.free()
    server.reset_counters()
    run = server.queue(graph)
    figures = server.counters()
    images = server.images(run) if run.succeeded else np.empty((0,), np.uint8)
    return Outcome(run, images, figures)


def difference(one: np.ndarray, other: np.ndarray) -> tuple[int, float]:
    """Largest and mean difference of two uint8 pictures, in steps of 255."""
    distance = np.abs(one.astype(int) - other.astype(int))
    return int(distance.max()), float(distance.mean())


def falling(peaks: dict[str, int]) -> str:
    """Peaks as a line for an assertion's message, in MiB."""
    return ", ".join(f"{level} {peak / MIB:.2f} MiB" for level, peak in peaks.items())

"""What part of a prediction a budget's plan keeps free: by what this machine's runs took, else 3%.

Runs of the model on this device, whatever their size and settings: each tells by how much
predictions of it are off. Rows of other devices, and of a card that is only named, tell nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import corrections, learning
from .history_rows import Row
from .planner.planner import MARGIN


@dataclass(frozen=True)
class KeptFree:
    """``margin`` is of the predicted peak; ``why`` says where it is from, for people."""

    margin: float
    why: str

    def text(self) -> str:
        """One sentence."""
        return f"{self.margin:.1%} of the prediction is kept free: {self.why}"


def kept_free(models: Mapping[str, str], card: str | None) -> KeptFree:
    """The margin for a plan.

    Args:
        models: the history's name of the model of each stage.
        card: a card asked for by name; ``None`` = this machine's device.
    """
    if card is not None:
        return KeptFree(MARGIN, f"nothing is learnt of a card that is only named ({card})")
    from . import backend

    if not backend.available_types():
        return KeptFree(MARGIN, "there is no device here whose runs could tell more")
    if not learning.active():
        return KeptFree(MARGIN, f"{learning.SWITCH} is off")
    import torch

    from .device import snapshot
    from .run_key import gpu_name

    gpu = gpu_name(snapshot(), str(torch.__version__))
    history = learning.history()
    rows = [
        [row for row in history.of_model(gpu, model) if row.stage == stage]
        for stage, model in models.items()
    ]
    return of_rows(rows)


def of_rows(stages: Sequence[Sequence[Row]]) -> KeptFree:
    """The margin by each stage's rows, the latest first: that of the stage that is off the most.

    Plans are made of predictions as they are: a correction upwards is kept free too. One downwards
    is not counted on, for it may be of another size.
    """
    margins, runs = [], 0
    for rows in stages:
        told = [row for row in rows if corrections.of_bytes(row) is not None]
        told = told[: corrections.RECENT]
        if not told:
            continue
        runs += len(told)
        by = max(1.0, corrections.correction(told, ()))
        margins.append(by * (1 + corrections.margin(told, (), MARGIN)) - 1)
    if not margins:
        return KeptFree(MARGIN, "no run of this model on this device has been measured")
    return KeptFree(max(margins), f"learnt from {runs} measured stages of runs on this device")

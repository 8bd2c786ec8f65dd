"""Predicts what a run will take on a device, and chooses what lies where so that it fits.

Nothing here needs torch: traces are recorded by ``memory/tracing`` and kept by ``cache``. The way
is trace -> placement -> replay -> prediction -> plan.
"""

from .cache import TraceCache
from .placement import Placement
from .predict import Prediction, StagePrediction, Turn, predict
from .trace import Trace
from .work import Work

__all__ = [
    "Placement",
    "Prediction",
    "StagePrediction",
    "Trace",
    "TraceCache",
    "Turn",
    "Work",
    "predict",
]

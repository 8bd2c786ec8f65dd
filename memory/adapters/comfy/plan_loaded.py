"""Predictions for models that are loaded in this ComfyUI: no weight is read, and nothing moved.

``loaded_subject`` makes of a MODEL, a CLIP and a VAE, any of them missing, what ``comfy_subject``
makes of a file: ``turns(config)`` for a configuration, ``within(limits, ...)`` for a budget. It
does not matter what is on the device, or whether LoRAs and Lowtide's nodes were applied: it is
predicted for the weights as the loader made them. Traces are kept in memory and on disk, so that
only the first question of a kind takes a second or more. It may be asked from any thread.
"""

from __future__ import annotations

from typing import Any

from ...errors import TargetError
from ...levels import MemoryOptimizationConfig
from ...planner.cache import TraceCache, shared
from ...planner.predict import Prediction, predict
from ...planner.work import Work
from ...stores import folder
from .plan_models import Models
from .plan_subject import ComfySubject, subject_of

NAME = "the loaded models"


def traces_store() -> TraceCache:
    """The store of this process: traces on disk, and the last few in memory."""
    return shared(folder() / "traces")


def loaded_subject(
    work: Work,
    *,
    model: Any = None,
    clip: Any = None,
    vae: Any = None,
    store: TraceCache | None = None,
    attention: str = "fused",
    workspace_factor: float = 1.0,
) -> ComfySubject:
    """What is to be predicted of loaded models. Cheap: nothing is traced before it is asked for.

    ``turns`` and ``within`` of the answer raise TargetError where a model can't be traced, with
    the reason; ask the next source then.

    Args:
        model, clip, vae: as nodes hand them on; ``None`` = that stage is left out.
        store: where traces are kept; ``None`` = this process's.
        attention: the kernel of the device, see ``tracing.attention``.
        workspace_factor: of the device's profile.

    Raises:
        TargetError: none of the three is given, or one is something else.
    """
    for name, value, part in (
        ("model", model, "model"),
        ("clip", clip, "cond_stage_model"),
        ("vae", vae, "first_stage_model"),
    ):
        if value is not None and getattr(value, part, None) is None:
            raise TargetError(f"`{name}` is a {type(value).__name__}; plug in a {name.upper()}")
    if model is None and clip is None and vae is None:
        raise TargetError("there is nothing to predict; plug in a MODEL, a CLIP or a VAE")
    found = Models(model, clip, vae)
    return subject_of(NAME, found, work, store or traces_store(), attention, workspace_factor)


def prediction(
    subject: ComfySubject, config: MemoryOptimizationConfig, costs: dict[str, Any]
) -> Prediction:
    """Peaks and times by stage (``encode``, ``denoise``, ``decode``) under ``config``.

    Args:
        costs: ``rates``, ``workspace_factor`` and ``context_bytes`` of the device's profile.

    Raises:
        TargetError: a model can't be traced.
    """
    return predict(subject.turns(config), **costs)

"""Runs one call of a module on fake tensors and makes a trace of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..errors import TargetError
from ..later import Ending
from ..planner.trace import Trace
from .attention import FusedAttention
from .recorder import Recorder, tensors_in


def record(
    module: torch.nn.Module,
    call: Callable[[], Any],
    mode: FakeTensorMode,
    inputs: Sequence[Any] = (),
    *,
    attention: str = "fused",
) -> Trace:
    """The trace of ``call()``, which runs ``module`` (its weights fakes of ``mode``) on ``inputs``.

    Args:
        attention: the kernel of scaled dot-product attention, one of ``attention.KINDS``.

    Raises:
        TargetError: the call asks for values, or does what cannot be done on fake tensors.
        Ending: the process ends meanwhile.
    """
    recorder = Recorder(module)
    collecting = gc.isenabled()
    gc.disable()  # else storages in cycles would die at moments that are chance
    started = time.perf_counter()
    try:
        # Not inference_mode, which the caller may be in: its tensors have no views that fakes
        # could follow, and operations would arrive here that are not taken apart.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            mode,
            recorder,
            FusedAttention(attention),
        ):
            for tensor in tensors_in(inputs):
                recorder.born(tensor)
            given = len(recorder.sizes)
            answer = call()
            outputs = [recorder.born(tensor) for tensor in tensors_in(answer)]
    except Ending:
        raise
    except Exception as error:
        raise TargetError(
            f"{type(module).__name__} cannot be traced without computing: "
            f"{type(error).__name__}: {str(error)[:300]}"
        ) from error
    finally:
        recorder.close()
        if collecting:
            gc.enable()
    events = tuple(recorder.events)
    del answer
    return Trace(
        tuple(recorder.modules),
        tuple(recorder.weights),
        tuple(recorder.sizes),
        given,
        tuple(recorder.operations),
        events,
        tuple(number for number in outputs if number is not None),
        time.perf_counter() - started,
    )

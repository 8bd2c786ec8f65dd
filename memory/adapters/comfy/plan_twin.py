"""A loaded model of ComfyUI's as its loader made it, in fakes: without what patchers did to it.

Whatever is loaded, streamed, patched with LoRAs or stored in FP8 at the moment: the twin has the
weights of the file, all on the fake device. No weight is read, and the model stays as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...errors import LowtideError, TargetError
from ...planner.trace import Trace
from ..versions import version
from .float8_layer import PARTS, SCALE, Float8Layer

_FUNCTIONS = ("weight_function", "bias_function")
"""What the core has a streamed layer's weights go through: LoRAs, with their weights."""
_PLACED = ("_v", "_v_signature", "_v_weight", "_v_bias", "_prefetch", "_pin", "_pin_state",
           "weight_lowvram_function", "bias_lowvram_function")  # fmt: skip
"""What DynamicVRAM and pinning keep on a layer."""
_PATIENCE = 20.0
"""Seconds to wait for another recording."""
_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.parameter.Buffer)


_recording = threading.Lock()
"""One recording at a time: it takes a second or more of a processor."""


def traced(part: str, record: Callable[[], Trace]) -> Callable[[], Trace]:
    """``record``, one at a time in this process.

    Raises:
        TargetError: it failed, whatever the reason; or another one is being recorded.
    """

    def recording() -> Trace:
        if not _recording.acquire(timeout=_PATIENCE):
            raise TargetError(
                f"the {part} is not traced: another one has been for {_PATIENCE} seconds"
            )
        try:
            return record()
        except LowtideError:
            raise
        except Exception as error:
            raise TargetError(
                f"the {part} cannot be traced: {type(error).__name__}: {str(error)[:300]}"
            ) from error
        finally:
            _recording.release()

    return recording


def identity(patcher: Any) -> dict[str, Any]:
    """What the trace of a patcher's model depends on besides the work: plain values.

    Raises:
        TargetError: as ``twin_of``.
    """
    module = patcher.model
    weights = list(weights_of(patcher))
    for name, tensor in weights:
        _check(name, tensor)
    return {
        "class": type(module).__name__,
        "weights": [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in weights],
        "config": repr(getattr(getattr(module, "model_config", None), "unet_config", None)),
        "cast": str(getattr(module, "manual_cast_dtype", None)),
        "torch": version("torch"),
        "comfyui": _comfy_version(),
    }


def _comfy_version() -> str | None:
    try:
        from comfyui_version import __version__
    except ImportError:
        return None
    return str(__version__)


def twin_of(patcher: Any, mode: Any) -> Any:
    """The patcher's model in fakes of ``mode``, as its loader made it.

    Raises:
        TargetError: weights of a kind whose memory is not known (quantised by another package).
    """
    from ...tracing import fake_copy

    with torch.inference_mode(False), torch.no_grad():
        twin: Any = fake_copy(patcher.model, mode, emptied=_FUNCTIONS)
        for name, part in twin.named_modules():
            if isinstance(part, Float8Layer):
                _decode(patcher, name, part, mode)
            held = vars(part)
            for one in _PLACED:
                held.pop(one, None)
            if "prev_comfy_cast_weights" in held:
                part.comfy_cast_weights = held.pop("prev_comfy_cast_weights")
    return twin


def weights_of(patcher: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of the model's weights as the loader made them; of FP8 storage that has
    dropped them, a stand-in on ``meta``."""
    seen: set[int] = set()
    for name, module in list(patcher.model.named_modules()):
        _, parameters, buffers = _loaded_parts(patcher, name, module)
        for key, tensor in (*parameters.items(), *buffers.items()):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield (f"{name}.{key}" if name else key), tensor


def _loaded_parts(
    patcher: Any, name: str, module: Any
) -> tuple[type, dict[str, Any], dict[str, Any]]:
    """Class, parameters and buffers of a layer as the loader made it."""
    if not isinstance(module, Float8Layer):
        return type(module), dict(module._parameters), dict(module._buffers)
    kept = patcher.object_patches_backup
    keys = [f"{name}.{part}" for part in PARTS]
    if all(key in kept for key in keys):
        kind, parameters, buffers = (kept[key] for key in keys)
        return kind, dict(parameters), dict(buffers)
    parameters = dict(module._parameters)
    weight = parameters["weight"]
    parameters["weight"] = torch.empty(
        tuple(weight.shape), dtype=module.lowtide_dtype, device="meta"
    )
    buffers = {key: value for key, value in module._buffers.items() if key != SCALE}
    return type(module).__bases__[1], parameters, buffers


def _decode(patcher: Any, name: str, part: Any, mode: Any) -> None:
    """Make a copied layer of codes the layer it was."""
    from ...tracing import fake_tensor

    held = vars(part)
    kind, parameters, buffers = _loaded_parts(patcher, name, part)
    part.__class__ = kind
    held["_parameters"] = {
        key: None
        if tensor is None
        else torch.nn.Parameter(fake_tensor(mode, tensor), requires_grad=False)
        for key, tensor in parameters.items()
    }
    held["_buffers"] = {
        key: None if tensor is None else fake_tensor(mode, tensor)
        for key, tensor in buffers.items()
    }


def _check(name: str, tensor: torch.Tensor) -> None:
    if type(tensor) not in _PLAIN:
        raise TargetError(
            f"the weights are quantised as {type(tensor).__name__} ({name}), whose memory Lowtide "
            f"cannot foresee; ComfyUI's estimate or a measured run says what they take"
        )

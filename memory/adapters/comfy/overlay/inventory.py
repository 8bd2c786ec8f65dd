"""The models that are loaded, one row each: what they are, and where their bytes lie.

Models are held weakly, and looked through only after they moved: reading the rows again costs
microseconds, and keeps no weight alive.
"""

from __future__ import annotations

import threading
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .... import backend
from ....adapters import comfy
from ....handles import LoadedPipeline, live_pipelines
from ....targets import parts_of
from .. import moved
from . import tidy

_SHARE = 400
"""A pipeline's bytes are counted again after so many times the time that counting took."""


@dataclass(frozen=True)
class Row:
    """One loaded model; bytes, ``None`` where unknown.

    Attributes:
        id: names it for as long as it lives; says nothing else.
        on_device: weights on ``device``.
        streamed: weights that come to the device anew at each use.
        fp8: weights stored in eight bits, wherever they are.
        pinned: host memory the driver may copy from directly.
        on_host: weights in host memory, originals kept beside changed ones included.
        last_used: unix time at which it was last wanted on the device.
        can_unload: whether taking it off the device would free anything there.
    """

    id: str
    name: str
    kind: str
    device: str
    size: int
    on_device: int
    streamed: int | None
    fp8: int | None
    pinned: int | None
    on_host: int | None
    last_used: float | None
    can_unload: bool

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Counted:
    """What a look through a model's tensors found; ``key`` changes when it moves."""

    key: object
    fp8: int
    on_host: int
    pinned: int | None


_lock = threading.Lock()
_ids: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_counted: weakref.WeakKeyDictionary[Any, _Counted] = weakref.WeakKeyDictionary()
_pipelines: weakref.WeakKeyDictionary[Any, tuple[float, int, int]] = weakref.WeakKeyDictionary()


def rows() -> list[Row]:
    """The loaded models, ComfyUI's most recent first, then diffusers pipelines by name."""
    with _lock:
        found: dict[str, Row] = {}
        for patcher in _patchers():
            row = _row(patcher)
            found.setdefault(row.id, row)
        return [*found.values(), *map(_pipeline_row, live_pipelines())]


def patcher_of(model_id: str) -> Any:
    """The patcher of a loaded model; ``None`` if none has that id, or no more."""
    return next((it for it in _patchers() if _ids.get(it.model) == model_id), None)


def pipeline_of(model_id: str) -> LoadedPipeline | None:
    """The diffusers pipeline of that id."""
    return next((it for it in live_pipelines() if _ids.get(it) == model_id), None)


def kind_of(model: Any) -> str:
    """model, clip, vae, control or other, by what the patched module is or can do."""
    from comfy.model_base import BaseModel

    places = {kind.__module__ for kind in type(model).__mro__}
    if isinstance(model, BaseModel):
        return "model"
    if any(part in place for place in places for part in ("cldm", "controlnet", "t2i_adapter")):
        return "control"
    if hasattr(model, "encode_token_weights"):
        return "clip"
    if hasattr(model, "decode") and hasattr(model, "encode"):
        return "vae"
    return "other"


def _row(patcher: Any) -> Row:
    size, on_device = int(patcher.model_size()), int(patcher.loaded_size())
    moves = patcher.load_device != patcher.offload_device
    counted = _look_through(patcher, on_device)
    return Row(
        id=_id_of(patcher.model),
        name=tidy.name(type(patcher.model).__name__),
        kind=kind_of(patcher.model),
        device=str(backend.device_of(patcher.load_device)),
        size=size,
        on_device=on_device,
        streamed=max(0, size - on_device) if moves else 0,
        fp8=None if counted is None else counted.fp8,
        pinned=None if counted is None else counted.pinned,
        on_host=None if counted is None else counted.on_host,
        last_used=moved.last_used(patcher.model),
        can_unload=moves,
    )


def _look_through(patcher: Any, on_device: int) -> _Counted | None:
    """Counted anew when the model moved; ``None`` if it is being moved just now."""
    model = patcher.model
    key = (on_device, patcher.patches_uuid, getattr(model, "current_weight_patches_uuid", None))
    known = _counted.get(model)
    if known is not None and known.key == key:
        return known
    try:
        parameters = [_stored(it) for it in model.parameters()]
        here = [*parameters, *model.buffers(), *_put_aside(patcher)]
        waiting = [
            tensor
            for name, new in list(patcher.object_patches.items())
            if name not in patcher.object_patches_backup
            for tensor in _tensors(new)
        ]
        found = _Counted(
            key,
            fp8=_bytes(it for it in [*parameters, *waiting] if _is_fp8(it.dtype)),
            on_host=_bytes(it for it in [*here, *waiting] if it.device.type == "cpu"),
            pinned=_pinned(patcher),
        )
    except (RuntimeError, KeyError, AttributeError):  # another thread loads or unloads it
        return None
    _counted[model] = found
    return found


def _put_aside(patcher: Any) -> Iterator[torch.Tensor]:
    """Originals of weights that patches changed, kept to be put back."""
    for kept in list(patcher.backup.values()):
        yield from _tensors(getattr(kept, "weight", kept))
    for kept in list(patcher.object_patches_backup.values()):
        yield from _tensors(kept)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The value itself, or of a layer's parameters each."""
    for one in value.values() if isinstance(value, dict) else (value,):
        if isinstance(one, torch.Tensor):
            yield one


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of distinct storages."""
    found: dict[tuple[str, int], int] = {}
    for tensor in tensors:
        if tensor.device.type == "meta":
            continue
        try:
            storage = tensor.untyped_storage()
            found[str(tensor.device), storage.data_ptr()] = storage.nbytes()
        except (RuntimeError, NotImplementedError):  # a wrapper without a storage of its own
            found[str(tensor.device), id(tensor)] = int(tensor.nbytes)
    return sum(found.values())


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    """What is kept of a weight: of the core's quantised ones their codes."""
    return getattr(tensor, "_qdata", tensor)


def _is_fp8(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize == 1


def _pinned(patcher: Any) -> int | None:
    """Bytes of host memory pinned for the model; ``None`` where this ComfyUI pins none."""
    keys = getattr(patcher, "pinned", None)
    if keys is None:
        return None
    count = sum(int(patcher.get_model_object(key).nbytes) for key in list(keys))
    says = getattr(patcher, "pinned_memory_size", None)
    return count + (0 if says is None else int(says()))


def _pipeline_row(loaded: LoadedPipeline) -> Row:
    device = backend.device_of(comfy.device())
    on_device, fp8 = _pipeline_bytes(loaded, device)
    return Row(
        id=_id_of(loaded),
        name=tidy.name(loaded.name),
        kind="pipeline",
        device=str(device),
        size=loaded.size,
        on_device=on_device,
        streamed=None,
        fp8=fp8,
        pinned=None,
        on_host=max(0, loaded.size - on_device),
        last_used=None,
        can_unload=device.type != "cpu",
    )


def _pipeline_bytes(loaded: LoadedPipeline, device: torch.device) -> tuple[int, int]:
    """Bytes on the device and in FP8. Hooks move weights unseen: counted again, but not often."""
    started = time.monotonic()
    known = _pipelines.get(loaded)
    if known is not None and started < known[0]:
        return known[1:]
    modules = [it for _, it in parts_of(loaded.pipeline) if isinstance(it, torch.nn.Module)]
    fp8 = _bytes(it for module in modules for it in module.parameters() if _is_fp8(it.dtype))
    found = loaded.on_device(device), fp8
    _pipelines[loaded] = (time.monotonic() + _SHARE * (time.monotonic() - started), *found)
    return found


def recount() -> None:
    """Count every pipeline anew at the next reading: one has just been moved."""
    with _lock:
        _pipelines.clear()


def _id_of(owner: Any) -> str:
    return _ids.setdefault(owner, uuid.uuid4().hex[:16])


def _patchers() -> list[Any]:
    import comfy.model_management as mm

    found = [entry.model for entry in list(mm.current_loaded_models)]
    return [patcher for patcher in found if patcher is not None]

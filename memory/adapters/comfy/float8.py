"""FP8 storage of a ComfyUI MODEL: which layers, made once, put in by a clone's object patches.

A clone exchanges class, parameters and buffers of each layer when it is loaded, and the core puts
the originals back when another patcher takes over. The codes belong to the clones that use them,
and are shared by all clones of one model.
"""

from __future__ import annotations

import time
import uuid
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import LowtideError
from ...float8 import LEAST, encode, in_a_block
from ...levels import MemoryOptimizationConfig
from ...strategies.base import Applied, Skipped
from ...units import format_bytes
from .float8_layer import PARTS, SCALE, float8_class
from .inference_weights import renew
from .models import unload
from .patchers import enforce, is_dynamic

NAME = "fp8 storage"
ATTACHMENT = "lowtide_float8"
_PREFIX = "diffusion_model."
_WIDE = (torch.float16, torch.bfloat16, torch.float32)
_DYNAMIC = (
    "DynamicVRAM sizes its pages by the type the model was loaded in; choose an fp8 weight_dtype "
    "in the loader"
)
_ENDS = "first and last layers, embeddings or on the signal's only path"
_SMALL = "too small"
_NARROW = "stored in a smaller type already"
_FOREIGN = "of a kind Lowtide does not know"
_BROKEN = "not finite"


@dataclass(frozen=True)
class Layer:
    """What a layer consists of while its weight is in codes."""

    name: str
    parts: tuple[type, dict[str, Any], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Stored:
    """A model's layers in codes, held by the clones that use them.

    Attributes:
        before, after: bytes of these layers' weights as loaded, and in codes with their scales.
        left: how many layers keep their type, by reason.
        seconds: what encoding took.
    """

    layers: tuple[Layer, ...]
    before: int
    after: int
    left: dict[str, int]
    seconds: float

    @property
    def saved(self) -> int:
        """Bytes less on the device, and less to move."""
        return self.before - self.after


_made: weakref.WeakKeyDictionary[Any, weakref.ref[Stored]] = weakref.WeakKeyDictionary()


def store(patcher: Any, config: MemoryOptimizationConfig, entries: list[Any]) -> Any:
    """A clone whose layers are stored in FP8; the patcher itself where none can be.

    With ``config.keep_originals`` False the layers of the model itself are exchanged, for every
    patcher of it, until it is loaded again.
    """
    part = "model"
    reason = _unable(patcher)
    if reason is not None:
        entries.append(Skipped(NAME, part, reason))
        return patcher
    if ATTACHMENT in patcher.attachments or isinstance(_kept(patcher.model), Stored):
        entries.append(Skipped(NAME, part, "its layers are stored in FP8 already"))
        enforced = patcher.clone()
        enforce(enforced)
        return enforced
    found = _made.get(patcher.model, lambda: None)()
    stored = _encoded(patcher) if found is None else found
    if not stored.layers:
        entries.append(Skipped(NAME, part, f"no layer may be: {_listed(stored.left)}"))
        return patcher
    _made[patcher.model] = weakref.ref(stored)
    if not config.keep_originals:
        _exchange(patcher, stored)
    clone = patcher.clone()
    enforce(clone)
    clone.set_attachments(ATTACHMENT, stored)
    if config.keep_originals:
        for layer in stored.layers:
            for name, value in zip(PARTS, layer.parts, strict=True):
                clone.add_object_patch(f"{layer.name}.{name}", value)
            # With its class a layer gets its functions back, whoever unpatches the model.
            clone.add_object_patch(f"{layer.name}.weight_function", [])
        clone.size = int(patcher.model_size()) - stored.saved
    clone.patches_uuid = uuid.uuid4()
    undo = _unplug if config.keep_originals else _refuse
    entries.append(Applied(NAME, part, _detail(stored, config.keep_originals), undo))
    return clone


def _unable(patcher: Any) -> str | None:
    import comfy.model_management as mm

    if is_dynamic(patcher):
        return _DYNAMIC
    if not mm.supports_cast(patcher.load_device, torch.float8_e4m3fn):
        return f"{patcher.load_device} has no float8_e4m3fn"
    return None


def _encoded(patcher: Any) -> Stored:
    """Encode what may be. The model leaves its device first: there, LoRAs may be written in it."""
    unload(patcher)
    renew(patcher.model)
    start = time.perf_counter()
    layers: list[Layer] = []
    left: Counter[str] = Counter()
    before = after = 0
    with torch.inference_mode(False), torch.no_grad():
        for name, module in _candidates(patcher.model):
            reason = _reason(patcher, name, module)
            weight = module._parameters.get("weight")
            made = None if reason else encode(weight)
            if made is None:
                left[reason or _BROKEN] += 1
                continue
            codes = torch.nn.Parameter(made.codes, requires_grad=False)
            kind = float8_class(type(module), made.curve, weight.dtype)
            buffers = {**module._buffers, SCALE: made.scale}
            layers.append(Layer(name, (kind, {**module._parameters, "weight": codes}, buffers)))
            before += weight.nbytes
            after += made.nbytes
    return Stored(tuple(layers), before, after, dict(left), time.perf_counter() - start)


def _candidates(model: Any) -> Iterator[tuple[str, Any]]:
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
    for name, module in model.named_modules():
        if name.startswith(_PREFIX) and isinstance(module, kinds):
            yield name, module


def _reason(patcher: Any, name: str, module: Any) -> str | None:
    """Why a layer keeps its weight, or ``None``."""
    import comfy.ops

    weight = module._parameters.get("weight")
    # Quantised weights come as bytes, as tensors of other classes, or with scales beside them.
    extra = {*module._parameters, *module._buffers} - {"weight", "bias"}
    plain = type(weight) is torch.nn.Parameter and type(weight.data) is torch.Tensor
    if not plain or extra or weight.dtype not in _WIDE:
        return _NARROW
    if not in_a_block(name.removeprefix(_PREFIX)):
        return _ENDS
    kind = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch."))
    base = getattr(comfy.ops.disable_weight_init, kind.__name__, None)
    methods = ("forward", "forward_comfy_cast_weights")
    known = base is not None and all(
        getattr(type(module), method, None) is getattr(base, method) for method in methods
    )
    replaced = any(key == name or key.startswith(f"{name}.") for key in patcher.object_patches)
    if not known or replaced or weight.is_meta:
        return _FOREIGN
    return _SMALL if weight.numel() < LEAST else None


def _exchange(patcher: Any, stored: Stored) -> None:
    """Put the codes in the place of the originals, which are freed, in the model itself."""
    import comfy.utils

    unload(patcher)
    for layer in stored.layers:
        for name, value in zip(PARTS, layer.parts, strict=True):
            comfy.utils.set_attr(patcher.model, f"{layer.name}.{name}", value)
    setattr(patcher.model, ATTACHMENT, stored)
    one = patcher
    while one is not None:
        one.size = max(0, int(one.size) - stored.saved)
        one = one.parent


def _kept(model: Any) -> Any:
    return getattr(model, ATTACHMENT, None)


def _detail(stored: Stored, keeps: bool) -> str:
    text = (
        f"{len(stored.layers)} layers in float8_e4m3fn, {format_bytes(stored.before)} as "
        f"{format_bytes(stored.after)}, encoded in {stored.seconds:.1f} s"
    )
    if stored.left:
        text += f"; {_listed(stored.left)} keep their type"
    if keeps:
        return (
            f"{text}; the originals stay in host RAM ({format_bytes(stored.before)}, which is what "
            f"undoing costs; keep_originals=False drops them)"
        )
    return f"{text}; the originals are dropped, for the loader's MODEL too, until it loads again"


def _listed(left: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left.items())) or "none found"


def _unplug() -> None:
    """A clone is undone by not using it: the originals were kept."""


def _refuse() -> None:
    raise LowtideError(
        "FP8 storage with keep_originals=False cannot be undone: the original weights were "
        "dropped. Load the model again"
    )

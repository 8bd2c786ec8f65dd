"""ComfyUI's own models from the header of a file: its classes and its detection, no weights read.

In a running ComfyUI loaded models are planned as they are (``plan_traces``). Without one, a process
of ComfyUI's own Python imports it for the CPU; what depends on the device's precision is answered
as an NVIDIA GPU would, or the device it is told of, for the length of the loading only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import PipelineLoadError
from ...planner.header import read_header
from .plan_precision import Precision

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

_STORED = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
"""Types that Load Diffusion Model can be asked to store in."""


@dataclass
class Models:
    """What a graph loads: a MODEL's patcher, a CLIP, a VAE; ``None`` = not in the file."""

    model: Any = None
    clip: Any = None
    vae: Any = None


_told = {"precision": Precision()}


def prepare(folder: Path | None = None, precision: Precision | None = None) -> None:
    """Import ComfyUI for planning; ``folder`` is where it is, if it can't be imported yet.

    Only for a process that plans and does nothing else: it is told that there is no GPU.

    Args:
        precision: of the device that is planned for; ``None`` = an NVIDIA GPU.
    """
    import sys

    _told["precision"] = precision or Precision()

    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    if "comfy.model_management" not in sys.modules:
        import comfy.cli_args

        comfy.cli_args.args.cpu = True
        comfy.cli_args.args.use_pytorch_cross_attention = True
        _told["precision"].set_flags(comfy.cli_args.args)
    import comfy.model_management


def meta_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a safetensors file with tensors on ``meta``.

    Raises:
        PipelineLoadError: no safetensors, or a type that is not known.
    """
    state: dict[str, torch.Tensor] = {}
    for name, entry in read_header(path).tensors.items():
        if entry.dtype not in _TYPES:
            raise PipelineLoadError(f"{path.name}: {name} is of a type not known: {entry.dtype}")
        state[name] = torch.empty(entry.shape, dtype=_TYPES[entry.dtype], device="meta")
    return state


def from_checkpoint(path: Path) -> Models:
    """Everything a checkpoint holds, by ComfyUI's own detection.

    Raises:
        PipelineLoadError: ComfyUI does not know what it is.
    """
    import comfy.sd

    state = meta_state(path)
    with _as_on_a_gpu():
        try:
            found = comfy.sd.load_state_dict_guess_config(state)
        except Exception as error:
            raise PipelineLoadError(
                f"ComfyUI cannot tell what {path.name} is from its header: "
                f"{type(error).__name__}: {error}"
            ) from error
    if found is None:
        raise PipelineLoadError(f"ComfyUI does not know what {path.name} is")
    return Models(*found[:3])


def diffusion_model(path: Path, weight_dtype: str = "default") -> Any:
    """The MODEL in a file of a diffusion model alone (Load Diffusion Model).

    Args:
        weight_dtype: as that node has it.

    Raises:
        PipelineLoadError: as :func:`from_checkpoint`.
    """
    import comfy.sd

    state = meta_state(path)
    options: dict[str, Any] = {}
    if weight_dtype in _STORED:
        options["dtype"] = _STORED[weight_dtype]
    elif weight_dtype != "default":
        raise PipelineLoadError(f"what a model takes at weight_dtype {weight_dtype} is not known")
    with _as_on_a_gpu():
        found = comfy.sd.load_diffusion_model_state_dict(state, model_options=options)
    if found is None:
        raise PipelineLoadError(f"ComfyUI does not know what {path.name} is")
    return found


def text_encoders(paths: list[Path], kind: str) -> Any:
    """The CLIP of the files a CLIP loader names; ``kind`` is the loader's ``type``."""
    import comfy.sd

    states = [meta_state(path) for path in paths]
    clip_type = getattr(comfy.sd.CLIPType, kind.upper(), comfy.sd.CLIPType.STABLE_DIFFUSION)
    with _as_on_a_gpu():
        return comfy.sd.load_text_encoder_state_dicts(states, clip_type=clip_type)


def autoencoder(path: Path) -> Any:
    """The VAE of a file."""
    import comfy.sd

    with _as_on_a_gpu():
        return comfy.sd.VAE(sd=meta_state(path))


_DEVICES = (
    "get_torch_device",
    "intermediate_device",
    "text_encoder_device",
    "text_encoder_initial_device",
    "text_encoder_offload_device",
    "unet_inital_load_device",
    "unet_offload_device",
    "vae_device",
    "vae_offload_device",
)


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """ComfyUI makes weights on ``meta``, in the types that the device planned for gets."""
    import comfy.model_management as mm

    from ...tracing import on_meta

    answers: dict[str, Any] = dict.fromkeys(_DEVICES, lambda *_, **__: torch.device("meta"))
    answers |= _told["precision"].answers()
    answers["load_models_gpu"] = lambda *_, **__: None
    answers["get_free_memory"] = lambda *_, **__: 1 << 40
    kept = {name: getattr(mm, name) for name in answers if hasattr(mm, name)}
    try:
        for name in kept:
            setattr(mm, name, answers[name])
        with on_meta():
            yield
    finally:
        for name, function in kept.items():
            setattr(mm, name, function)

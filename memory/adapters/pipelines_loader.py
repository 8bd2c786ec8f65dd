"""Loads a diffusers pipeline from a folder, and nothing that could run the folder's own code.

Only what ``model_index.json`` names is loaded, only classes that diffusers and transformers ship,
only safetensors weights, only from this folder: no download, no custom pipeline, no pickle.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, PipelineLoadError
from .models_folder import INDEX, resolve

DTYPES: dict[str, torch.dtype | None] = {
    "auto": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
_STORED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_LIBRARIES = ("diffusers", "transformers")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_HEADER_LIMIT = 100 << 20


def load_pipeline(folder: Path, dtype: str, device: torch.device) -> Any:
    """The pipeline of ``folder``, in host memory.

    Args:
        dtype: a key of ``DTYPES``; ``auto`` is the type the weights are stored in, and float32
            for the CPU, where half precision is slow.
        device: where it will run; nothing is put there.

    Raises:
        ConfigError: an unknown dtype.
        PipelineLoadError: no pipeline, an incomplete one, or one that is not safe to load.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; choose one of: {', '.join(DTYPES)}")
    index = read_index(folder)
    pipeline_class = _pipeline_class(folder, index)
    components = _components(folder, index)
    variant = _check_weights(folder, components)
    precision = DTYPES[dtype] or _stored_dtype(folder, components, device)
    try:
        # Parameters made in ComfyUI's inference mode could not be moved by offload hooks.
        with torch.inference_mode(False):
            return pipeline_class.from_pretrained(
                str(folder),
                torch_dtype=precision,
                use_safetensors=True,
                local_files_only=True,
                variant=variant,
            )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
        raise PipelineLoadError(
            f"{folder.name!r} could not be loaded as {pipeline_class.__name__}: {error}. Download "
            f"the pipeline again, or check that diffusers is new enough for it"
        ) from error


def read_index(folder: Path) -> dict[str, Any]:
    """The folder's model_index.json.

    Raises:
        PipelineLoadError: there is none, or it is not a pipeline's.
    """
    path = folder / INDEX
    if not path.is_file():
        raise PipelineLoadError(
            f"{folder.name!r} is no diffusers pipeline: it has no {INDEX}. A single checkpoint "
            f"file goes to models/checkpoints and is loaded with Load Checkpoint"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineLoadError(
            f"{path.name} of {folder.name!r} is not readable: {error}"
        ) from None
    if not isinstance(index, dict) or "_class_name" not in index:
        raise PipelineLoadError(
            f"{path.name} of {folder.name!r} names no pipeline class; download the pipeline again"
        )
    return index


def fingerprint(name: str) -> str:
    """Changes when a file of the pipeline called ``name`` does; empty if there is none."""
    try:
        folder = resolve(name)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        facts = [(str(p.relative_to(folder)), *_stamp(p)) for p in files]
    except (PipelineLoadError, OSError):
        return ""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def bytes_wanted(pipeline: Any, offload: str) -> int:
    """Bytes of weights on the device at once: all of them, or the largest part where they move."""
    sizes = [
        sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers()))
        for part in pipeline.components.values()
        if isinstance(part, torch.nn.Module)
    ]
    return sum(sizes) if offload == "none" else max(sizes, default=0)


def _stamp(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _pipeline_class(folder: Path, index: dict[str, Any]) -> Any:
    import diffusers

    name = index["_class_name"]
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise PipelineLoadError(
            f"{folder.name!r} asks for the pipeline class {name!r}, which diffusers "
            f"{diffusers.__version__} does not have. Code that comes with a pipeline is never run; "
            f"use a pipeline diffusers has, or update diffusers"
        )
    return found


def _components(folder: Path, index: dict[str, Any]) -> dict[str, type]:
    """Component -> class; components the index leaves empty are left out."""
    import diffusers
    import diffusers.pipelines
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    components: dict[str, type] = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list):
            continue
        library, kind = (*value, None, None)[:2]
        if library is None or kind is None:
            continue
        if not isinstance(library, str) or not isinstance(kind, str) or _escapes(name):
            raise PipelineLoadError(_custom(folder, name, value))
        module = libraries.get(library)
        if module is None and library.isidentifier():
            module = getattr(diffusers.pipelines, library, None)
        found = getattr(module, kind, None)
        if module is None or not isinstance(found, type):
            raise PipelineLoadError(_custom(folder, name, value))
        components[name] = found
    return components


def _escapes(name: str) -> bool:
    return "/" in name or "\\" in name or name in ("", ".", "..")


def _custom(folder: Path, name: str, value: Any) -> str:
    return (
        f"component {name!r} of {folder.name!r} is {value!r}, no class of "
        f"{' or '.join(_LIBRARIES)}. Code that comes with a pipeline is never run; use a pipeline "
        f"made of their classes, or update them"
    )


def _check_weights(folder: Path, components: dict[str, type]) -> str | None:
    """The variant (such as fp16) the folder's weights come in; ``None`` = the plain ones."""
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    variants: set[str | None] = set()
    for name, kind in components.items():
        if not issubclass(kind, (ModelMixin, PreTrainedModel)):
            continue
        part = folder / name
        if not part.is_dir():
            raise PipelineLoadError(
                f"{folder.name!r} is incomplete: there is no folder {name!r}; download it again"
            )
        files = [path.name for path in part.iterdir() if path.is_file()]
        weights = [file for file in files if file.endswith(".safetensors")]
        if not weights:
            raise PipelineLoadError(_no_weights(folder, name, files))
        variants.add(_variant(weights))
    found = sorted(filter(None, variants), key=lambda variant: (variant != "fp16", variant))
    return next(iter(found), None)


def _no_weights(folder: Path, name: str, files: list[str]) -> str:
    pickles = [file for file in files if file.endswith(_PICKLES)]
    if not pickles:
        return (
            f"{name!r} of {folder.name!r} has no weights (*.safetensors); download the pipeline "
            f"again, with its large files"
        )
    return (
        f"{name!r} of {folder.name!r} has its weights as {pickles[0]} only, a format that can run "
        f"code when it is read. Get the safetensors version of the pipeline, or convert it with "
        f"diffusers: pipeline.save_pretrained(folder, safe_serialization=True)"
    )


def _variant(weights: list[str]) -> str | None:
    """``fp16`` of ``model.fp16.safetensors``, unless there is a ``model.safetensors`` too.

    Of several variants fp16, else the first by name: folders are listed in no order.
    """
    stems = [_SHARD.sub("", file.removesuffix(".safetensors")) for file in weights]
    if any("." not in stem for stem in stems):
        return None
    variants = sorted(stem.rsplit(".", 1)[1] for stem in stems)
    return "fp16" if "fp16" in variants else variants[0]


def _stored_dtype(folder: Path, components: dict[str, type], device: torch.device) -> torch.dtype:
    """The type of the denoiser's weights; float32 where the device is the CPU."""
    if device.type == "cpu":
        return torch.float32
    for name in ("transformer", "unet", *components):
        for path in sorted((folder / name).glob("*.safetensors")):
            found = {
                entry.get("dtype")
                for key, entry in _header(path).items()
                if key != "__metadata__" and isinstance(entry, dict)
            }
            known = [_STORED[kind] for kind in ("BF16", "F16", "F32") if kind in found]
            if known:
                return known[0]
    return torch.float32


def _header(path: Path) -> dict[str, Any]:
    """A safetensors file's table of tensors: 8 bytes of length, then JSON."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= _HEADER_LIMIT:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise PipelineLoadError(
            f"{path.parent.name}/{path.name} is no safetensors file ({error}); download it again"
        ) from None
    return header if isinstance(header, dict) else {}

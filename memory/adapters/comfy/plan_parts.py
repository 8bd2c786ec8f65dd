"""The models that a graph's loaders name, made from the headers of their files.

For a process that plans (``plan_models.prepare``). Each part is asked for by plain values: ``kind``
(``checkpoint``, ``model``, ``clip`` or ``vae``), ``files`` and the loader's ``type``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigError, LowtideError, PipelineLoadError
from ...planner.wired import Loaded
from . import plan_models

logger = logging.getLogger("lowtide")

ENDINGS = (".safetensors", ".sft")


def asked_for(part: str, loaded: Loaded, files: list[Path]) -> dict[str, Any]:
    """A part of a graph, as :func:`load` asks for it."""
    kind = "checkpoint" if loaded.folder == "checkpoints" else part
    return {"kind": kind, "files": [str(file) for file in files], "type": loaded.type}


def file_of(folder: str, name: str) -> Path:
    """The file of that name in ComfyUI's folders of that kind.

    Raises:
        ConfigError: there is none, or it has no header.
    """
    import folder_paths

    found = folder_paths.get_full_path(folder, name)
    if found is None:
        raise ConfigError(f"it loads {name}, which is not in ComfyUI's {folder} folders")
    if not name.lower().endswith(ENDINGS):
        raise ConfigError(f"it loads {name}, and only safetensors have a header to predict from")
    return Path(found).absolute()


def load(parts: Mapping[str, Mapping[str, Any]], left_out: dict[str, str]) -> plan_models.Models:
    """The models, on ``meta``; a checkpoint that several are of is read once.

    Args:
        parts: ``model``, ``clip`` and ``vae``, as far as they are there.
        left_out: gets the parts that cannot be made, and why.
    """
    found = plan_models.Models()
    checkpoints: dict[Path, plan_models.Models | LowtideError] = {}
    for part, source in parts.items():
        files = [Path(name) for name in source["files"]]
        with leaving_out(part, left_out):
            if source["kind"] == "checkpoint":
                made = getattr(_checkpoint(files[0], checkpoints), part)
            elif part == "model":
                made = plan_models.diffusion_model(files[0], source["type"])
            elif part == "clip":
                made = plan_models.text_encoders(files, source["type"])
            else:
                made = plan_models.autoencoder(files[0])
            if made is None:
                raise PipelineLoadError(f"there is no {part.upper()} in {files[0].name}")
            setattr(found, part, made)
    return found


@contextlib.contextmanager
def leaving_out(part: str, left_out: dict[str, str]) -> Iterator[None]:
    """Do something for ``part``, and note in ``left_out`` why it failed, if it did."""
    try:
        yield
    except LowtideError as error:
        left_out[part] = str(error)
    except Exception as error:  # ComfyUI's own loaders raise what they like
        logger.warning("the %s cannot be predicted", part, exc_info=True)
        left_out[part] = f"ComfyUI cannot load it: {type(error).__name__}: {str(error)[:200]}"


def _checkpoint(
    file: Path, known: dict[Path, plan_models.Models | LowtideError]
) -> plan_models.Models:
    """What a checkpoint holds; one that cannot be loaded is tried once."""
    if file not in known:
        try:
            known[file] = plan_models.from_checkpoint(file)
        except LowtideError as error:
            known[file] = error
    made = known[file]
    if isinstance(made, LowtideError):
        raise made
    return made

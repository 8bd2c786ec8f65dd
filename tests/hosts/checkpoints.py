"""Random models for the host tests, built once and cached in the user's cache folder.

Checkpoints come from ComfyUI's own classes (``build_checkpoint.py``), diffusers folders from the
pack's synthetic pipelines. The key of each is a digest of the sources that make it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .comfyui import Installation

BUILDER = Path(__file__).with_name("build_checkpoint.py")
SYNTHETIC = Path(__file__).resolve().parents[2] / "memory" / "adapters" / "synthetic"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in ComfyUI's own layout, and a LoRA that fits its UNet and text encoder."""

    file: Path
    lora: Path


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "lowtide-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest(*sources: Path) -> str:
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def checkpoint(installation: Installation, recipe: str) -> Checkpoint:
    """Recipe "small" (290 MiB), "small-kl" (with a full VAE), "wide", "full"; see the builder."""
    stem = f"{recipe}-{digest(BUILDER)}"
    folder = cache_folder()
    made = Checkpoint(folder / f"{stem}.safetensors", folder / f"{stem}-lora.safetensors")
    if made.file.exists() and made.lora.exists():
        return made
    parts = [path.with_suffix(f".{os.getpid()}.part") for path in (made.file, made.lora)]
    command = [str(installation.python), str(BUILDER), str(installation.root), recipe]
    done = subprocess.run(
        [*command, *map(str, parts)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise RuntimeError(f"the {recipe} checkpoint was not built:\n{done.stdout[-4000:]}")
    parts[0].replace(made.file)
    parts[1].replace(made.lora)
    return made


def diffusers_folder(name: str) -> Path:
    """A synthetic pipeline such as "tiny-sd15", saved as diffusers saves it, fp16 safetensors."""
    folder = cache_folder() / f"{name}-{digest(*sorted(SYNTHETIC.glob('*.py')))}"
    if not folder.exists():
        from lowtide.memory.adapters.synthetic import build

        part = folder.with_suffix(f".{os.getpid()}.part")
        build(name, dtype="float16", seed=0).save_pretrained(part, safe_serialization=True)
        try:
            part.rename(folder)
        except OSError:
            # Another run finished first; its folder is as good.
            shutil.rmtree(part)
    return folder

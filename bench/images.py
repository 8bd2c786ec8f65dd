"""``SaveImage`` and ``PreviewImage`` for graphs run without ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..memory.errors import ConfigError


def write_png(image: torch.Tensor, path: Path) -> None:
    """Write one image of shape (height, width, 3), values 0..1."""
    levels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    Image.fromarray(levels.numpy()).save(path)


def output_nodes(
    folder: Path, on_images: Callable[[torch.Tensor], None] | None = None
) -> dict[str, Any]:
    """The two classes, writing numbered PNG files to ``folder``.

    Args:
        on_images: told the images SaveImage was given, shape (batch, height, width, 3).
    """

    class SaveImage:
        OUTPUT_NODE = True
        FUNCTION = "save"
        RETURN_TYPES = ()

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {
                "required": {
                    "images": ("IMAGE",),
                    "filename_prefix": ("STRING", {"default": "lowtide"}),
                }
            }

        def save(self, images: torch.Tensor, filename_prefix: str) -> dict[str, Any]:
            if on_images is not None:
                on_images(images)
            return {"ui": {"images": _save(images, folder, filename_prefix)}}

    class PreviewImage:
        OUTPUT_NODE = True
        FUNCTION = "save"
        RETURN_TYPES = ()

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"images": ("IMAGE",)}}

        def save(self, images: torch.Tensor) -> dict[str, Any]:
            return {"ui": {"images": _save(images, folder, "preview")}}

    return {"SaveImage": SaveImage, "PreviewImage": PreviewImage}


def _save(images: torch.Tensor, folder: Path, prefix: str) -> list[dict[str, str]]:
    """Write each image under the next free number; a file already there stays."""
    target = (folder / prefix).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise ConfigError(f"the file name prefix {prefix!r} leads out of {folder}")
    target.parent.mkdir(parents=True, exist_ok=True)
    saved = []
    number = 1
    for image in images:
        while (path := target.with_name(f"{target.name}_{number:05d}_.png")).exists():
            number += 1
        write_png(image, path)
        saved.append({"filename": path.name, "folder": str(path.parent)})
    return saved

"""How large an image is that ComfyUI will load, from the head of its file."""

from __future__ import annotations

import logging

logger = logging.getLogger("lowtide")

_ORIENTATION = 0x0112
_ON_ITS_SIDE = (5, 6, 7, 8)
"""Values of that tag of EXIF; ComfyUI turns such images as it loads them."""


def image_size(name: str) -> tuple[int, int] | None:
    """(width, height) in pixels of the image that LoadImage's widget names; ``None`` = no such."""
    import folder_paths
    from PIL import Image

    try:
        with Image.open(folder_paths.get_annotated_filepath(name)) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    except Exception:  # a file that is none, or that is not there: the node itself will say so
        logger.debug("the size of %s is not known", name, exc_info=True)
        return None
    return (height, width) if turned else (width, height)

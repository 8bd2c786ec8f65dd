"""ComfyUI's progress bar, latent previews and cancel button, for a diffusers pipeline."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger("lowtide")

_FORMATS = (("XL", "SDXL"), ("Flux", "Flux"), ("StableDiffusion3", "SD3"), ("", "SD15"))
"""Part of a pipeline's class name -> the latent format whose preview fits."""


class ComfyProgress:
    """One run's bar in ComfyUI, with previews if ComfyUI is set to make them."""

    def __init__(self, pipeline: Any, steps: int, width: int, height: int) -> None:
        from comfy.utils import ProgressBar

        self._pipeline = pipeline
        self._size = (width, height)
        self._bar = ProgressBar(steps)
        self._previewer = _previewer(pipeline)

    def step(self, done: int, total: int, latents: Any) -> None:
        """Move the bar; show the latents if they can be shown."""
        self._bar.update_absolute(done, total, self._preview(latents))

    def check(self) -> None:
        """Raise ComfyUI's own exception, which it takes for a cancelled run and no error."""
        import comfy.model_management as mm

        mm.throw_exception_if_processing_interrupted()

    def _preview(self, latents: Any) -> Any:
        if self._previewer is None or latents is None:
            return None
        try:
            return self._previewer.decode_latent_to_preview_image("JPEG", self._unpacked(latents))
        except (RuntimeError, ValueError, AttributeError, TypeError) as error:
            # A preview is a courtesy: the run goes on without one.
            logger.info("no previews for %s: %s", type(self._pipeline).__name__, error)
            self._previewer = None
            return None

    def _unpacked(self, latents: Any) -> Any:
        unpack = getattr(self._pipeline, "_unpack_latents", None)
        if latents.ndim == 3 and unpack is not None:
            width, height = self._size
            return unpack(latents, height, width, self._pipeline.vae_scale_factor)
        return latents


def _previewer(pipeline: Any) -> Any:
    import comfy.latent_formats as formats
    import comfy.model_management as mm
    import latent_preview

    name = type(pipeline).__name__
    wanted = next(found for part, found in _FORMATS if part in name)
    latent_format = getattr(formats, wanted)()
    config = getattr(getattr(pipeline, "vae", None), "config", None)
    if getattr(config, "latent_channels", None) != latent_format.latent_channels:
        return None
    return latent_preview.get_previewer(mm.get_torch_device(), latent_format)

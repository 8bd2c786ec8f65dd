"""Lowtide Fit Check."""

from __future__ import annotations

from typing import Any

from ..memory import fit_check
from ..memory.planner.work import Work
from .types import CATEGORY, CONFIG


def _size(default: int, what: str) -> tuple[str, dict[str, Any]]:
    return ("INT", {"default": default, "min": 16, "max": 16384, "step": 8, "tooltip": what})


def _count(default: int, what: str) -> tuple[str, dict[str, Any]]:
    return ("INT", {"default": default, "min": 1, "max": 4096, "tooltip": what})


class FitCheck:
    """Predicts what a graph will take before its models run, and passes the models on."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Predicts the peak memory and the time of encoding, sampling and decoding at every level "
        "before they run. The models pass through unchanged."
    )
    FUNCTION = "run"
    OUTPUT_NODE = True
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "STRING", "STRING", "IMAGE")
    RETURN_NAMES = ("model", "clip", "vae", "text", "json", "chart")
    OUTPUT_TOOLTIPS = (
        "The model, unchanged: sample with this one, so that the check comes first.",
        "The text encoder, unchanged.",
        "The VAE, unchanged.",
        "A table: peaks of each stage, time, and whether it fits, at each level.",
        "The same as JSON, sizes in bytes.",
        "Peak against predicted time: the levels, and the line of the budget or the device.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "width": _size(1024, "Of the image, in pixels, where no latent is plugged in."),
                "height": _size(1024, "Of the image, in pixels, where no latent is plugged in."),
                "batch_size": _count(1, "Images at once, where no latent is plugged in."),
                "steps": _count(20, "Of sampling."),
                "cfg": (
                    "FLOAT",
                    {
                        "default": 7.0,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.1,
                        "tooltip": "Of the sampler. At 1 it predicts with the prompt alone, which "
                        "takes less memory.",
                    },
                ),
                "budget_gb": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 1024.0,
                        "step": 0.1,
                        "round": 0.001,
                        "tooltip": "What it has to fit in, in GB. 0 takes the configuration's "
                        "budget, or what the device has.",
                    },
                ),
                "if_it_does_not_fit": (
                    list(fit_check.ACTIONS),
                    {
                        "default": "report",
                        "tooltip": "report says so and goes on; stop ends the run before anything "
                        "is computed, with what would help.",
                    },
                ),
            },
            "optional": {
                "config": (
                    CONFIG,
                    {"tooltip": "Of Lowtide Memory Level Selector: the way that is judged."},
                ),
                "model": ("MODEL", {"tooltip": "The diffusion model."}),
                "clip": ("CLIP", {"tooltip": "The text encoder."}),
                "vae": ("VAE", {"tooltip": "The VAE that decodes."}),
                "latent": (
                    "LATENT",
                    {"tooltip": "Width, height and batch are taken from it."},
                ),
            },
        }

    def run(
        self,
        width: int,
        height: int,
        batch_size: int,
        steps: int,
        cfg: float,
        budget_gb: float,
        if_it_does_not_fit: str,
        config: Any = None,
        model: Any = None,
        clip: Any = None,
        vae: Any = None,
        latent: Any = None,
    ) -> dict[str, Any]:
        work = Work(width, height, batch_size, steps, guided=cfg != 1)
        text, data, chart = fit_check.fit_check(
            config,
            work,
            budget_gb,
            if_it_does_not_fit,
            model=model,
            clip=clip,
            vae=vae,
            latent=latent,
        )
        return {"ui": {"text": [text]}, "result": (model, clip, vae, text, data, chart)}


NODE_CLASS_MAPPINGS = {"LowtideFitCheck": FitCheck}
NODE_DISPLAY_NAME_MAPPINGS = {"LowtideFitCheck": "Lowtide Fit Check"}

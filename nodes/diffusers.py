"""Loading, optimising and running a diffusers pipeline."""

from __future__ import annotations

from typing import Any

from ..memory import diffusers_session
from .types import CATEGORY, CONFIG, PIPELINE


class LoadDiffusersPipeline:
    """Loads a diffusers pipeline folder into host memory."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Loads a diffusers pipeline from a folder under models/diffusers. Only safetensors "
        "weights and diffusers' own classes are loaded; code in the folder is never run."
    )
    FUNCTION = "run"
    RETURN_TYPES = (PIPELINE,)
    RETURN_NAMES = ("pipeline",)
    OUTPUT_TOOLTIPS = ("The pipeline, in host memory until something runs it.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "folder": (
                    diffusers_session.folders(),
                    {"tooltip": "A folder under models/diffusers with a model_index.json."},
                ),
                "dtype": (
                    ["auto", "bfloat16", "float16", "float32"],
                    {
                        "default": "auto",
                        "tooltip": "The type the weights are kept in. auto takes the type they are "
                        "stored in, and float32 on a CPU.",
                    },
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, folder: str, dtype: str) -> str:
        return diffusers_session.folder_fingerprint(folder)

    def run(self, folder: str, dtype: str) -> tuple[Any]:
        return (diffusers_session.load(folder, dtype),)


class OptimizeDiffusersPipeline:
    """Attaches a configuration to a diffusers pipeline."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Applies a memory configuration to a diffusers pipeline."
    FUNCTION = "run"
    RETURN_TYPES = (PIPELINE, "STRING")
    RETURN_NAMES = ("pipeline", "text")
    OUTPUT_TOOLTIPS = (
        "The pipeline with the configuration applied.",
        "What was applied, what was not, and why.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "config": (CONFIG, {"tooltip": "From Lowtide Memory Level Selector."}),
                "pipeline": (PIPELINE, {"tooltip": "From Lowtide Load Diffusers Pipeline."}),
            }
        }

    def run(self, config: Any, pipeline: Any) -> tuple[Any, str]:
        return diffusers_session.optimize(config, pipeline)


class Generate:
    """Runs a diffusers pipeline: text in, images out."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Generates images with a diffusers pipeline, with progress, preview and cancel."
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The images.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "pipeline": (
                    PIPELINE,
                    {"tooltip": "A diffusers pipeline, optimised or as it was loaded."},
                ),
                "prompt": (
                    "STRING",
                    {"multiline": True, "default": "", "tooltip": "What the image should show."},
                ),
                "negative": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "tooltip": "What it should not show. Pipelines without a negative prompt "
                        "(FLUX for one) ignore it.",
                    },
                ),
                "width": (
                    "INT",
                    {
                        "default": 1024,
                        "min": 16,
                        "max": 16384,
                        "step": 8,
                        "tooltip": "Width of each image, in pixels.",
                    },
                ),
                "height": (
                    "INT",
                    {
                        "default": 1024,
                        "min": 16,
                        "max": 16384,
                        "step": 8,
                        "tooltip": "Height of each image, in pixels.",
                    },
                ),
                "steps": (
                    "INT",
                    {
                        "default": 30,
                        "min": 1,
                        "max": 1000,
                        "tooltip": "Denoising steps.",
                    },
                ),
                "guidance": (
                    "FLOAT",
                    {
                        "default": 7.0,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.1,
                        "round": 0.01,
                        "tooltip": "How strongly the image follows the prompt.",
                    },
                ),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 0xFFFFFFFFFFFFFFFF,
                        "control_after_generate": True,
                        "tooltip": "The same seed gives the same image, at every level that only "
                        "changes where weights are kept.",
                    },
                ),
                "batch_size": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": 64,
                        "tooltip": "Images generated at once.",
                    },
                ),
            }
        }

    def run(
        self,
        pipeline: Any,
        prompt: str,
        negative: str,
        width: int,
        height: int,
        steps: int,
        guidance: float,
        seed: int,
        batch_size: int,
    ) -> tuple[Any]:
        return (
            diffusers_session.generate(
                pipeline,
                prompt=prompt,
                negative=negative,
                width=width,
                height=height,
                steps=steps,
                guidance=guidance,
                seed=seed,
                batch_size=batch_size,
            ),
        )


NODE_CLASS_MAPPINGS = {
    "LowtideLoadDiffusersPipeline": LoadDiffusersPipeline,
    "LowtideOptimizeDiffusersPipeline": OptimizeDiffusersPipeline,
    "LowtideGenerate": Generate,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LowtideLoadDiffusersPipeline": "Lowtide Load Diffusers Pipeline",
    "LowtideOptimizeDiffusersPipeline": "Lowtide Optimize Diffusers Pipeline",
    "LowtideGenerate": "Lowtide Generate",
}

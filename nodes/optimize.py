"""Lowtide Optimize Pipeline: ComfyUI's own models, as clones."""

from __future__ import annotations

from typing import Any

from ..memory import session
from .types import CATEGORY, CONFIG


class OptimizePipeline:
    """Applies a configuration to clones of a model, a text encoder, a VAE and a ControlNet."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Applies a memory configuration to ComfyUI's own models. The inputs stay as they are: "
        "unplug this node and everything is back to normal."
    )
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "STRING", "CONTROL_NET")
    RETURN_NAMES = ("model", "clip", "vae", "text", "control_net")
    OUTPUT_TOOLTIPS = (
        "A clone of the model, kept under its cap of resident weights.",
        "A clone of the text encoder that leaves the device when it has encoded.",
        "A copy of the VAE that works in tiles and leaves the device when it is done.",
        "What was applied, what was not, and why.",
        "A copy of the ControlNet whose weights count with the model's.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "config": (CONFIG, {"tooltip": "From Lowtide Memory Level Selector."}),
            },
            "optional": {
                "model": (
                    "MODEL",
                    {"tooltip": "The diffusion model. Plug LoRAs in before or after this node."},
                ),
                "clip": ("CLIP", {"tooltip": "The text encoder."}),
                "vae": ("VAE", {"tooltip": "The VAE, for decoding and for encoding."}),
                "control_net": (
                    "CONTROL_NET",
                    {"tooltip": "A ControlNet that steers the model: both share the budget."},
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, unique_id: str | None = None, **_inputs: Any) -> str:
        return session.plan_fingerprint(unique_id)

    def run(
        self,
        config: Any,
        model: Any = None,
        clip: Any = None,
        vae: Any = None,
        control_net: Any = None,
        unique_id: str | None = None,
    ) -> tuple[Any, Any, Any, str, Any]:
        result = session.optimize_native(
            config,
            model=model,
            clip=clip,
            vae=vae,
            control_net=control_net,
            node_id=unique_id,
        )
        text = result.report.text()
        return result.model, result.clip, result.vae, text, result.control_net


NODE_CLASS_MAPPINGS = {"LowtideOptimizePipeline": OptimizePipeline}
NODE_DISPLAY_NAME_MAPPINGS = {"LowtideOptimizePipeline": "Lowtide Optimize Pipeline"}

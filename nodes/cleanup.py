"""Lowtide Force Cleanup."""

from __future__ import annotations

from typing import Any

from ..memory import session
from .types import ANY, CATEGORY, FIGURES


class ForceCleanup:
    """Passes anything through and gives memory back at that moment, on every run.

    An output node without ``IS_CHANGED``: ComfyUI still visits it when it is cached, and
    ``session`` cleans up there, without running again what is downstream.
    """

    CATEGORY = CATEGORY
    DESCRIPTION = "Releases memory between two nodes, on every run, and says what it released."
    FUNCTION = "run"
    OUTPUT_NODE = True
    RETURN_TYPES = (ANY, "STRING", FIGURES)
    RETURN_NAMES = ("anything", "text", "receipt")
    OUTPUT_TOOLTIPS = (
        "The input, unchanged.",
        "The receipt: before, after, by owner.",
        "The receipt in bytes: before, after, by owner, what is left and who holds it.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "anything": (ANY, {"tooltip": "Passed through; it decides when to clean up."}),
                "target": (
                    ["vram", "ram", "both"],
                    {
                        "default": "vram",
                        "tooltip": "vram takes every model off the device and empties its cache; "
                        "ram also lets ComfyUI drop its cached results after this run; both does "
                        "both.",
                    },
                ),
            },
            "optional": {
                "keep": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Models that stay where they are, by the names VRAM Monitor "
                        "shows, between commas. ComfyUI's cached results stay with them.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls) -> bool:
        session.begin_to_follow()
        return True

    def run(
        self, anything: Any, target: str, keep: str = "", unique_id: str | None = None
    ) -> dict[str, Any]:
        text, receipt = session.force_cleanup(target, unique_id, keep)
        shown = {"text": [text], "receipt": [receipt]}
        return {"ui": shown, "result": (anything, text, receipt)}


NODE_CLASS_MAPPINGS = {"LowtideForceCleanup": ForceCleanup}
NODE_DISPLAY_NAME_MAPPINGS = {"LowtideForceCleanup": "Lowtide Force Cleanup"}

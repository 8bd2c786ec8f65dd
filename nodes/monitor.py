"""Lowtide VRAM Monitor."""

from __future__ import annotations

from typing import Any

from ..memory import session
from .types import ANY, CATEGORY, FIGURES


class VRAMMonitor:
    """Passes anything through and reads the memory at that moment.

    An output node without ``IS_CHANGED``: a cached monitor is still visited on every run, and
    ``session`` reads again there, so its text is never an old run's and what is downstream of
    it stays cached.
    """

    CATEGORY = CATEGORY
    DESCRIPTION = "Shows what the device and the host hold at this point of the graph."
    FUNCTION = "run"
    OUTPUT_NODE = True
    RETURN_TYPES = (ANY, "STRING", FIGURES)
    RETURN_NAMES = ("anything", "text", "figures")
    OUTPUT_TOOLTIPS = (
        "The input, unchanged.",
        "The figures, readable.",
        "The figures in bytes: allocated, reserved, free, total, host RAM, peak so far, models; "
        "of the runs so far predicted and measured, stage by stage.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "anything": (ANY, {"tooltip": "Passed through; it decides when to read."}),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls) -> bool:
        session.begin_to_follow()
        return True

    def run(self, anything: Any, unique_id: str | None = None) -> dict[str, Any]:
        text, figures = session.monitor(unique_id)
        return {"ui": {"text": [text]}, "result": (anything, text, figures)}


NODE_CLASS_MAPPINGS = {"LowtideVRAMMonitor": VRAMMonitor}
NODE_DISPLAY_NAME_MAPPINGS = {"LowtideVRAMMonitor": "Lowtide VRAM Monitor"}

"""Lowtide Memory Level Selector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..memory import session
from .types import CATEGORY, CONFIG

if TYPE_CHECKING:
    from ..memory.levels import MemoryOptimizationConfig


class MemoryLevelSelector:
    """Turns a level, a budget and a cleanup policy into the configuration other nodes apply."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Chooses how much memory to save: a level, an optional budget, when to clean up."
    FUNCTION = "run"
    RETURN_TYPES = (CONFIG, "STRING")
    RETURN_NAMES = ("config", "text")
    OUTPUT_TOOLTIPS = (
        "The configuration, for Lowtide Optimize Pipeline and Optimize Diffusers Pipeline.",
        "What was detected, what was chosen, and why.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "level": (
                    session.level_names(),
                    {
                        "default": "auto",
                        "tooltip": "auto takes the fastest level that is predicted to fit what is "
                        "free when Optimize Pipeline runs, corrected by earlier runs. auto (by "
                        "VRAM size) goes by the device's memory: under 6 GB ultra, under 8 "
                        "aggressive, under 12 balanced, else none. Each level saves more memory "
                        "and takes more time than the one before.",
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
                        "tooltip": "The most this graph may have allocated on the device at any "
                        "moment, weights and activations together, in GB. 0 means no budget.",
                    },
                ),
                "cleanup": (
                    ["off", "pressure", "always"],
                    {
                        "default": "pressure",
                        "tooltip": "When memory is given back after a run: always, only when the "
                        "device is short of it (pressure), or never (off).",
                    },
                ),
            },
            "optional": {
                "rescue": (
                    ["on", "off", "ask"],
                    {
                        "default": "on",
                        "tooltip": "on runs a node that is out of memory again: after freeing what "
                        "it does not use, with the VAE in tiles, then with weights streamed. Nodes "
                        "that save or show something are never run twice. ask puts the question in "
                        "the browser first, and waits two minutes for the answer.",
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls) -> bool:
        session.begin_to_follow()
        return True

    @classmethod
    def IS_CHANGED(cls, level: str, budget_gb: float, cleanup: str, rescue: str = "on") -> str:
        return session.detection_fingerprint(level)

    def run(
        self, level: str, budget_gb: float, cleanup: str, rescue: str = "on"
    ) -> tuple[MemoryOptimizationConfig, str]:
        return session.choose(level, budget_gb, cleanup, rescue)


NODE_CLASS_MAPPINGS = {"LowtideMemoryLevelSelector": MemoryLevelSelector}
NODE_DISPLAY_NAME_MAPPINGS = {"LowtideMemoryLevelSelector": "Lowtide Memory Level Selector"}

"""Lowtide Memory Settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..memory import session
from .types import CATEGORY, CONFIG

if TYPE_CHECKING:
    from ..memory.levels import MemoryOptimizationConfig


_SWITCH = ["level", "on", "off"]
_CLEANUPS = {
    "after_load": "Whether a cleanup is due when a node has loaded a model. Whether it happens is "
    "the cleanup policy's: always, or under pressure when memory is short.",
    "after_lora": "Whether a cleanup is due when a node has put a LoRA on a model.",
    "after_step": "Whether a cleanup is due after each sampling step: some milliseconds a step.",
    "after_unload": "Whether the caches are emptied when a model has left the device.",
    "on_exit": "Whether models leave the device once no later node needs them, and after the run.",
    "cleanup_host": "Whether a cleanup gives RAM back as well: ComfyUI forgets its cached results "
    "after the run, so that the next one loads its models from disk again.",
}
_HISTORY = (
    "Whether the figures of this graph's runs are kept to make better predictions: peaks, times, "
    "and classes and sizes of models, on this computer only. No prompt and no file name."
)
_STEP_PEAKS = (
    "Whether the timeline has the peak of every sampling step beside that of its node: some "
    "microseconds a step."
)


class MemorySettings:
    """Changes single settings of a configuration; every widget starts as the level has it."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Changes single settings of a level: attention, chunks, FP8, the VAE's tiles. What is "
        "left at level or 0 stays as the level has it."
    )
    FUNCTION = "run"
    RETURN_TYPES = (CONFIG, "STRING")
    RETURN_NAMES = ("config", "text")
    OUTPUT_TOOLTIPS = (
        "The configuration with these settings, for the optimize nodes.",
        "What differs from the configuration that came in.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "config": (CONFIG, {"tooltip": "From Lowtide Memory Level Selector."}),
                "fp8_storage": (
                    ["level", "on", "off"],
                    {
                        "default": "level",
                        "tooltip": "Keeps the diffusion model's weights in FP8 and computes in its "
                        "own type: half the memory of 16 bits, a small change of the image.",
                    },
                ),
                "keep_originals": (
                    ["level", "on", "off"],
                    {
                        "default": "level",
                        "tooltip": "With FP8: off drops the original weights from RAM, for good: "
                        "every node that uses the model gets FP8 until it is loaded again.",
                    },
                ),
                "attention": (
                    ["level", *session.ATTENTION_KINDS],
                    {
                        "default": "level",
                        "tooltip": "The diffusion model's attention. auto leaves ComfyUI's choice; "
                        "sliced computes a few heads at a time and never holds more than 64 MB of "
                        "scores: for devices without a fused kernel.",
                    },
                ),
                "attention_slice_size": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 1024,
                        "tooltip": "Heads at once when attention is sliced; 0 leaves it as the "
                        "level has it (half of the heads), 1 saves most.",
                    },
                ),
                "forward_chunk_size": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 1048576,
                        "step": 64,
                        "tooltip": "Tokens at once through feed-forward layers; 0 leaves it as the "
                        "level has it (all). 1024 suits large images; the image does not change.",
                    },
                ),
                "vae_tiling": (
                    ["level", "on", "off"],
                    {
                        "default": "level",
                        "tooltip": "Whether the VAE works in tiles.",
                    },
                ),
                "vae_tile_mode": (
                    ["level", "auto", "exact", "blended"],
                    {
                        "default": "level",
                        "tooltip": "exact gives the untiled image at the memory of a tile, blended "
                        "mixes overlapping tiles, auto is exact where the VAE's layers are known.",
                    },
                ),
                "vae_tile_size": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 8192,
                        "step": 64,
                        "tooltip": "Edge of a tile, in pixels of the image; 0 chooses by the "
                        "image and the level.",
                    },
                ),
                "vae_decode_chunk_size": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 4096,
                        "tooltip": "Images of a batch the VAE works on at once; 0 leaves it as "
                        "the level has it, 1 saves most.",
                    },
                ),
            },
            "optional": {
                name: (_SWITCH, {"default": "level", "tooltip": text})
                for name, text in (
                    *_CLEANUPS.items(),
                    ("history", _HISTORY),
                    ("step_peaks", _STEP_PEAKS),
                )
            },
        }

    def run(
        self,
        config: Any,
        fp8_storage: str,
        keep_originals: str,
        attention: str,
        attention_slice_size: int,
        forward_chunk_size: int,
        vae_tiling: str,
        vae_tile_mode: str,
        vae_tile_size: int,
        vae_decode_chunk_size: int,
        after_load: str = "level",
        after_lora: str = "level",
        after_step: str = "level",
        after_unload: str = "level",
        on_exit: str = "level",
        cleanup_host: str = "level",
        history: str = "level",
        step_peaks: str = "level",
    ) -> tuple[MemoryOptimizationConfig, str]:
        return session.adjust(
            config,
            fp8_storage=fp8_storage,
            keep_originals=keep_originals,
            attention=attention,
            attention_slice_size=attention_slice_size,
            forward_chunk_size=forward_chunk_size,
            vae_tiling=vae_tiling,
            vae_tile_mode=vae_tile_mode,
            vae_tile_size=vae_tile_size,
            vae_decode_chunk_size=vae_decode_chunk_size,
            after_load=after_load,
            after_lora=after_lora,
            after_step=after_step,
            after_unload=after_unload,
            on_exit=on_exit,
            cleanup_host=cleanup_host,
            history=history,
            step_peaks=step_peaks,
        )


NODE_CLASS_MAPPINGS = {"LowtideMemorySettings": MemorySettings}
NODE_DISPLAY_NAME_MAPPINGS = {"LowtideMemorySettings": "Lowtide Memory Settings"}

"""The stages of a run by the names the monitor and the history have for them. No torch here."""

from __future__ import annotations

from .planner.predict import DECODE, DENOISE, ENCODE

TEXT_ENCODING = "text_encoding"
DENOISING = "denoising"
DECODING = "decoding"

OF_PLANNER = {ENCODE: TEXT_ENCODING, DENOISE: DENOISING, DECODE: DECODING}
"""What the planner calls them, and what they are measured under."""

"""Tests of the web side in a real browser, against real ComfyUI frontends."""

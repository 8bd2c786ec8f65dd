"""The memory-strategy core: usable without ComfyUI, and the only place that moves a byte."""

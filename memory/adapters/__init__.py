"""The only package that imports ComfyUI, diffusers, accelerate or transformers."""

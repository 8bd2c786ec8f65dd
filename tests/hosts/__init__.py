"""The pack inside real ComfyUI: boots it, queues graphs over HTTP, counts device memory.

Read in this order: ``comfyui`` (finds installations), ``checkpoints`` and ``models`` (random models
for them), ``server`` (one running ComfyUI), ``fixtures``, then the tests.
"""

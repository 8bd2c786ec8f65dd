"""Real diffusers pipelines with random seeded weights, for tests, the demo and the bench."""

from .build import DTYPES, NAMES, SDXL_SMALL, build, component_bytes, run, write_pipeline
from .denoisers import DENOISERS, build_denoiser
from .lora import lora_state_dict
from .weights import weight_bytes

__all__ = [
    "DENOISERS",
    "DTYPES",
    "NAMES",
    "SDXL_SMALL",
    "build",
    "build_denoiser",
    "component_bytes",
    "lora_state_dict",
    "run",
    "weight_bytes",
    "write_pipeline",
]

"""The models the bench can measure, and whether the host can hold them."""

from __future__ import annotations

from dataclasses import dataclass

from ..memory.device import host_snapshot
from ..memory.errors import ConfigError, DeviceError
from ..memory.units import GIB, format_bytes

_DECODE_BYTES_AT_1024 = 12.7 * GIB
"""A full float32 VAE decode at 1024 px on the host: the maps, the segments the simulated allocator
keeps of them, and the CPU's scratch. Measured: SDXL's process peaks at 20.8 GB."""

_PROCESS_BYTES = 1.5 * GIB


@dataclass(frozen=True)
class Model:
    """A synthetic pipeline and the run that suits it. Sizes in pixels."""

    key: str
    pipeline: str
    size: int
    steps: int
    dtype: str
    published: dict[str, float] | None = None

    def warm_up(self, size: int) -> int:
        """Pixels of the warm-up. Offload hooks learn sizes from it, so it is a full one, but for
        models whose single step is minutes of a CPU."""
        return 64 if self.real else size

    @property
    def real(self) -> bool:
        """Whether it has a real checkpoint's size."""
        return self.key in ("sd15", "sdxl", "flux")


BRIEF_SDXL = {"none": 12.5, "balanced": 7.2, "aggressive": 5.4, "ultra": 4.1}
"""Peaks in GB aimed at for SDXL 1.0 at 1024 px, 30 steps, on a real GPU."""

MODELS = {
    model.key: model
    for model in (
        Model("tiny", "tiny-sdxl", 256, 4, "float16"),
        Model("tiny-sd15", "tiny-sd15", 256, 4, "float16"),
        Model("tiny-flux", "tiny-flux", 256, 4, "float16"),
        Model("sdxl-small", "sdxl-small", 512, 4, "float16"),
        Model("sd15", "sd15", 512, 4, "float16"),
        Model("sdxl", "sdxl", 1024, 4, "float16", BRIEF_SDXL),
        Model("flux", "flux", 1024, 4, "bfloat16"),
    )
}


def targets_for(model: Model, size: int) -> dict[str, float]:
    """The published peaks in GB by level, where the run is the published one; else empty."""
    return model.published if model.published is not None and size == model.size else {}


def model_of(key: str) -> Model:
    """The model called ``key``.

    Raises:
        ConfigError: there is none.
    """
    if key not in MODELS:
        raise ConfigError(f"no model is called {key!r}; choose {', '.join(MODELS)}")
    return MODELS[key]


def check_host_memory(model: Model, dtype: str, size: int, on_host: bool) -> None:
    """Refuse a run that would drive the host out of memory.

    Args:
        on_host: whether the device's memory is the host's too (simulated, or the CPU).

    Raises:
        DeviceError: the RAM available is less than the run needs; both are named.
    """
    if not model.real:
        return
    from ..memory.adapters.synthetic import build, component_bytes

    need = sum(component_bytes(build(model.pipeline, dtype, on_meta=True)).values())
    need += int(_PROCESS_BYTES)
    if on_host:
        need += int(_DECODE_BYTES_AT_1024 * (size / 1024) ** 2)
    available = host_snapshot().available
    if need > available:
        raise DeviceError(
            f"{model.key} at {size} px needs about {format_bytes(need)} of RAM here and "
            f"{format_bytes(available)} is available; close other programs, or choose a smaller "
            f"model (--model sd15) or size"
        )

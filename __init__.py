"""Lowtide: makes diffusion models fit, in ComfyUI and as a library.

ComfyUI reads ``NODE_CLASS_MAPPINGS`` and ``WEB_DIRECTORY``; Python code imports the names of
``__all__``, which load on first use. Nothing is patched and no state is kept here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"

_LIBRARY = {
    "DeviceSnapshot": ".memory.device",
    "MemoryMonitor": ".memory.monitor",
    "MemoryOptimizationConfig": ".memory.levels",
    "MemoryOptimizer": ".memory.optimizer",
    "OptimizationLevel": ".memory.levels",
    "Receipt": ".memory.cleanup",
    "plan": ".memory.plan",
    "release": ".memory.cleanup",
    "snapshot": ".memory.device",
}
_HOST = {"NODE_CLASS_MAPPINGS": ".nodes", "NODE_DISPLAY_NAME_MAPPINGS": ".nodes"}

__all__ = ["WEB_DIRECTORY", *sorted(_LIBRARY), *sorted(_HOST)]


def __getattr__(name: str) -> Any:
    home = _LIBRARY.get(name) or _HOST.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home, __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

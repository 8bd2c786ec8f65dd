"""The kernel a ComfyUI MODEL computes its attention by, chosen for that model alone.

The core looks for an override in the model's options at every attention call that carries them.
Text encoders, VAEs and a few models' extra layers call without: they keep the core's own choice.
Nothing hooks weights here, so that DynamicVRAM patchers are served as well.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from ...levels import MemoryOptimizationConfig
from ...strategies.base import Applied, Skipped
from .sliced import as_core_function

NAME = "attention"
KEY = "optimized_attention_override"
_PART = "model"
_OURS = "lowtide_kind"
_CORE_NAMES = {
    "pytorch": "pytorch",
    "xformers": "xformers",
    "sub-quadratic": "sub_quad",
    "split": "split",
}
_REACH = "; text encoder and VAE keep ComfyUI's choice"


def choose(patcher: Any, config: MemoryOptimizationConfig, entries: list[Any]) -> Any:
    """A clone of a MODEL that computes attention as ``config`` says; ``patcher`` stays as it is.

    The patcher itself comes back where nothing is to be changed; ``entries`` gets the outcome.
    """
    kind = config.attention
    present = _options(patcher).get(KEY)
    if present is not None and (kind == "auto" or _kind(present) is None):
        entries.append(Skipped(NAME, _PART, f"{_describe(present)}: it stays"))
        return patcher
    if kind == "auto":
        entries.append(Skipped(NAME, _PART, f"auto leaves ComfyUI's own choice, {core_choice()}"))
        return patcher
    function: Any
    if kind == "sliced":
        function = as_core_function(config.attention_slice_size)
        detail = f"sliced, {_heads(config.attention_slice_size)} at once{_REACH}"
    else:
        chosen = _core_function(_CORE_NAMES[kind])
        if chosen is None:
            entries.append(Skipped(NAME, _PART, _why_missing(kind)))
            return patcher
        function = _calling(chosen)
        detail = f"ComfyUI's {kind} kernel{_REACH}"
    setattr(function, _OURS, kind)
    clone = patcher.clone()
    clone.model_options = {
        **clone.model_options,
        "transformer_options": {**_options(clone), KEY: function},
    }
    entries.append(Applied(NAME, _PART, detail, _unplug))
    return clone


def core_choice() -> str:
    """The kernel this ComfyUI uses where nobody chooses, by its name there: ``pytorch``."""
    from comfy.ldm.modules import attention

    return str(attention.optimized_attention.__name__).removeprefix("attention_")


def _options(patcher: Any) -> dict[str, Any]:
    found: dict[str, Any] = patcher.model_options.get("transformer_options", {})
    return found


def _core_function(name: str) -> Any:
    from comfy.ldm.modules import attention

    return attention.get_attention_function(name, None)


def _calling(chosen: Any) -> Any:
    """An override that calls a kernel of the core: a plain function, as older cores copy deeply."""

    def lowtide_attention(_stock: Any, *args: Any, **kwargs: Any) -> Any:
        return chosen(*args, **kwargs)

    return lowtide_attention


def _why_missing(kind: str) -> str:
    if kind != "xformers":
        return f"this ComfyUI has no {kind} kernel; choose auto, pytorch or sliced"
    if importlib.util.find_spec("xformers") is None:
        return (
            "xformers is not installed; install the build made for this torch "
            "(pip install xformers) and restart ComfyUI, or choose auto or pytorch"
        )
    return (
        "xformers is installed, but ComfyUI does not use it: it was started with "
        "--disable-xformers, its build does not fit this torch, or the device has no kernel "
        "of it. See ComfyUI's log, or choose auto or pytorch"
    )


def _kind(function: Any) -> str | None:
    found = getattr(function, _OURS, None)
    return found if isinstance(found, str) else None


def _describe(function: Any) -> str:
    kind = _kind(function)
    if kind is not None:
        return f"an earlier Lowtide node chose {kind}"
    where = getattr(function, "__module__", None) or type(function).__module__
    return f"another node chose this model's attention ({where})"


def _heads(size: int | str) -> str:
    named = {"auto": "half of the heads", "max": "one head", 1: "one head"}
    return named.get(size, f"{size} heads")


def _unplug() -> None:
    """A clone is undone by not using it: the original was never touched."""

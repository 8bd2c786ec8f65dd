"""Nodes of which it is known that they use the device only through models under a budget.

While any other node runs nothing stays on the device beside it: what it takes there nobody can
tell. Of other packs' nodes those that make numbers of numbers are known, such as seeds and sizes.
"""

from __future__ import annotations

from typing import Any

from .graph import Outputs, inputs_of, is_patcher, patchers_in
from .residency import residency_of

_CORE_ITSELF = "nodes"
_THROUGH_MODELS = frozenset(
    {
        "advanced_samplers",
        "align_your_steps",
        "apg",
        "attention_multiply",
        "cfg",
        "clip_sdxl",
        "cond",
        "context_windows",
        "controlnet",
        "custom_sampler",
        "differential_diffusion",
        "edit_model",
        "eps",
        "flux",
        "freelunch",
        "fresca",
        "gits",
        "hidream",
        "hooks",
        "hypertile",
        "images",
        "ip2p",
        "latent",
        "logic",
        "lumina2",
        "mahiro",
        "math",
        "model_advanced",
        "model_downscale",
        "number_convert",
        "optimalsteps",
        "pag",
        "perpneg",
        "pixart",
        "preview_any",
        "primitive",
        "qwen",
        "rebatch",
        "resolution",
        "rope",
        "sag",
        "sd3",
        "seed",
        "slg",
        "string",
        "tcfg",
        "tomesd",
        "torch_compile",
        "zimage",
    }
)
"""Of the core's ``comfy_extras``, by their files' names without ``nodes_``."""

_RUN_THEIR_OWN = frozenset({"CLIPVisionEncode", "StyleModelApply"})
"""Classes among these that run a model no budget knows of."""

_OURS = frozenset(
    {
        "LowtideOptimizePipeline",
        "LowtideMemoryLevelSelector",
        "LowtideMemorySettings",
        "LowtideFitCheck",
        "LowtideVRAMMonitor",
        "LowtideForceCleanup",
    }
)
_NUMBERS = frozenset({"INT", "FLOAT", "BOOLEAN"})
_PLAIN = (int, float, str)
_MODELS = frozenset({"MODEL", "CLIP", "VAE", "CONTROL_NET"})


def known(graph: Any, node: str, outputs: Outputs) -> bool:
    """Whether ``node`` takes nothing of the device but for models under a budget.

    Args:
        graph: ComfyUI's ``DynamicPrompt``.
        outputs: as ``graph.inputs_of`` takes it.
    """
    import nodes

    name = graph.get_node(node)["class_type"]
    kind = nodes.NODE_CLASS_MAPPINGS.get(name)
    if kind is None:
        return False
    gives = set(map(str, getattr(kind, "RETURN_TYPES", None) or ()))
    given = inputs_of(graph, node, outputs)
    if gives and gives <= _NUMBERS and all(isinstance(value, _PLAIN) for value in given):
        return True
    if name not in _OURS and not _through_models(kind, name):
        return False
    if gives & _MODELS:
        return True  # it hands models on: others compute with them
    return all(map(_under_a_budget, given))


def _through_models(kind: Any, name: str) -> bool:
    if name in _RUN_THEIR_OWN:
        return False
    module = getattr(kind, "RELATIVE_PYTHON_MODULE", None)
    if module is None:
        return bool(kind.__module__ == _CORE_ITSELF)
    folder, _, file = str(module).rpartition(".")
    return folder == "comfy_extras" and file.removeprefix("nodes_") in _THROUGH_MODELS


def _under_a_budget(value: Any) -> bool:
    """Whether the models that a value holds all keep to a budget beside others.

    Of a guider with two models the core loads the second one without its wrappers: as if the
    device were empty.
    """
    if sum(map(is_patcher, getattr(value, "__dict__", {}).values())) > 1 and not is_patcher(value):
        return False
    residencies = map(residency_of, patchers_in(value))
    return all(it is not None and it.budget is not None for it in residencies)

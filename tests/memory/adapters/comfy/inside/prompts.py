"""Toy nodes and prompts that use the device, for cases about ComfyUI's real executor."""

from __future__ import annotations

import inspect

import comfy.model_management as mm
import execution
import torch
from small import DEVICE, load, lora

import nodes

MIB = 1 << 20
LOG: list[str] = []
MODELS: dict[str, object] = {}
SEEN: dict[str, object] = {}


class AnyType(str):
    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


ANY = AnyType("*")


class Node:
    """Takes a value; subclasses say what they do."""

    RETURN_TYPES = (ANY,)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"mb": ("INT", {"default": 0})},
            "optional": {"a": (ANY, {}), "b": (ANY, {})},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def run(self, mb, a=None, b=None, unique_id=None):
        LOG.append(unique_id)
        return self.work(mb, a, b)

    def work(self, mb, a, b):
        held = torch.zeros(mb * MIB, dtype=torch.uint8, device=DEVICE)
        del held
        return (mb,)


class Loader(Node):
    """Gives the model the case has set for its ``mb``."""

    def work(self, mb, a, b):
        return (MODELS[mb],)


class Use(Node):
    """Loads its model and computes beside ``mb`` MiB."""

    def work(self, mb, a, b):
        load(a)
        held = torch.zeros(mb * MIB, dtype=torch.uint8, device=DEVICE)
        del held
        return (mb,)


class Steps(Node):
    """``mb`` steps, each with one MiB more than the one before."""

    def run(self, mb, a=None, b=None, unique_id=None):
        from comfy_execution.progress import get_progress_state

        for step in range(mb):
            held = torch.zeros((step + 1) * MIB, dtype=torch.uint8, device=DEVICE)
            del held
            # What the server's hook of ComfyUI's progress bars does.
            get_progress_state().update_progress(unique_id, step + 1, mb)
        return (mb,)


class Leave(Node):
    """Puts what is loaded now under its name in SEEN."""

    OUTPUT_NODE = True

    def work(self, mb, a, b):
        SEEN[f"at {mb}"] = loaded()
        return {"ui": {"n": [mb]}, "result": (mb,)}


class Fails(Node):
    OUTPUT_NODE = True

    def work(self, mb, a, b):
        held = torch.zeros(mb * MIB, dtype=torch.uint8, device=DEVICE)
        raise RuntimeError(f"as planned, with {held.numel()} bytes")


class Stops(Fails):
    def work(self, mb, a, b):
        held = torch.zeros(mb * MIB, dtype=torch.uint8, device=DEVICE)
        assert held is not None
        raise mm.InterruptProcessingException()


class Expands(Node):
    """Makes two nodes of itself."""

    def work(self, mb, a, b):
        from comfy_execution.graph_utils import GraphBuilder

        graph = GraphBuilder()
        one = graph.node("Node", mb=mb)
        two = graph.node("Node", mb=2 * mb, a=one.out(0))
        return {"result": (two.out(0),), "expand": graph.finalize()}


class Lazy(Node):
    """Asks for its input ``a`` only when it runs."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"mb": ("INT", {"default": 0})},
            "optional": {"a": (ANY, {"lazy": True})},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def check_lazy_status(self, mb, a=None, unique_id=None):
        return ["a"] if a is None else []

    def run(self, mb, a=None, unique_id=None):
        return super().run(mb, a, None, unique_id)


class LowtideMemoryLevelSelector(Node):
    """Stands in for the real one: only its inputs are read."""

    @classmethod
    def INPUT_TYPES(cls):
        texts = {"rescue": ("STRING", {}), "cleanup": ("STRING", {})}
        return {"required": {"mb": ("INT", {})}, "optional": texts}

    def run(self, mb, **texts):
        return (mb,)


class LowtideMemorySettings(Node):
    """Stands in for the real one, as above."""

    @classmethod
    def INPUT_TYPES(cls):
        from lowtide.memory.adjust import CLEANUPS

        texts = {name: ("STRING", {}) for name in (*CLEANUPS, "history", "step_peaks")}
        return {"required": {"mb": ("INT", {})}, "optional": texts}

    def run(self, mb, **texts):
        return (mb,)


class Lora(Node):
    """A clone of its model with a LoRA."""

    def work(self, mb, a, b):
        return (lora(a),)


class Unfolds(Node):
    """Makes a loader and two nodes that use its model, one after the other, and a look between."""

    def work(self, mb, a, b):
        from comfy_execution.graph_utils import GraphBuilder

        graph = GraphBuilder()
        model = graph.node("Loader", mb=mb)
        one = graph.node("Use", mb=1, a=model.out(0))
        see = graph.node("Leave", mb=1, a=one.out(0))
        two = graph.node("Use", mb=1, a=model.out(0), b=see.out(0))
        return {"result": (two.out(0),), "expand": graph.finalize()}


class Gives(Node):
    """Hands its nodes a model itself, in place of a link to one."""

    def work(self, mb, a, b):
        from comfy_execution.graph_utils import GraphBuilder

        graph = GraphBuilder()
        one = graph.node("Use", mb=1, a=MODELS[mb])
        see = graph.node("Leave", mb=1, a=one.out(0))
        two = graph.node("Use", mb=1, a=MODELS[mb], b=see.out(0))
        return {"result": (two.out(0),), "expand": graph.finalize()}


for kind in (
    Node, Loader, Use, Steps, Leave, Fails, Stops, Expands, Lazy, LowtideMemoryLevelSelector,
    LowtideMemorySettings, Lora, Unfolds, Gives,
):  # fmt: skip
    nodes.NODE_CLASS_MAPPINGS[kind.__name__] = kind


class Server:
    client_id = None
    last_node_id = last_prompt_id = None
    sockets_metadata: dict[str, object] = {}

    def send_sync(self, event, data, sid=None):
        pass


def loaded() -> list[str]:
    """Names (keys of MODELS) of the models with weights on the device."""
    held = [it.model for it in mm.current_loaded_models if it.model and it.model.loaded_size()]
    return sorted(str(k) for k, m in MODELS.items() if any(m.is_clone(it) for it in held))


def kinds() -> list[object]:
    found = [execution.CacheType.CLASSIC]
    if hasattr(execution.CacheType, "RAM_PRESSURE"):
        found.append(execution.CacheType.RAM_PRESSURE)
    return found


def runner(kind: object = None) -> execution.PromptExecutor:
    takes = inspect.signature(execution.PromptExecutor.__init__).parameters
    more = {}
    if "cache_args" in takes:
        more["cache_args"] = {"lru": 0, "ram": 1.0, "ram_inactive": 1.0}
    return execution.PromptExecutor(Server(), cache_type=kind or kinds()[0], **more)


def go(executor: execution.PromptExecutor, **spec: tuple) -> list[str]:
    """Run ``name=(class, mb, a, b)``, a and b names of nodes; the nodes that ran, in order."""
    graph = {}
    for name, (kind, mb, *sources) in spec.items():
        inputs: dict[str, object] = {"mb": mb}
        for key, source in zip("ab", sources, strict=False):
            if isinstance(source, str) and source in spec:
                inputs[key] = [source, 0]
            elif isinstance(source, dict):
                inputs.update(source)
        graph[name] = {"class_type": kind, "inputs": inputs}
        if sources and isinstance(sources[-1], dict):
            inputs.update(sources[-1])
    outputs = [
        name
        for name, node in graph.items()
        if getattr(nodes.NODE_CLASS_MAPPINGS[node["class_type"]], "OUTPUT_NODE", False)
    ]
    LOG.clear()
    executor.execute(graph, "prompt", {}, outputs)
    return list(LOG)

"""A node pack as others write them: each node keeps a tensor that it should have let go."""

from __future__ import annotations

import comfy.model_management as mm
import torch

KEPT = []
CALLBACKS = []


class State:
    """Refers to itself through its parts."""

    def __init__(self, tensor):
        self.tensor = tensor
        self.parts = {"state": self}


class Keeps:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE", {}), "mib": ("INT", {"default": 1})}}

    def run(self, image, mib):
        self.keep(torch.zeros(mib << 20, dtype=torch.uint8, device=mm.get_torch_device()))
        return (image,)


class KeepsInGlobal(Keeps):
    def keep(self, tensor):
        KEPT.append(tensor)


class KeepsInCycle(Keeps):
    last = None

    def keep(self, tensor):
        KeepsInCycle.last = State(tensor)


class DropsCycle(Keeps):
    def keep(self, tensor):
        State(tensor)


class KeepsInClosure(Keeps):
    def keep(self, tensor):
        def callback():
            return tensor.sum()

        CALLBACKS.append(callback)


class KeepsInInstance(Keeps):
    def keep(self, tensor):
        self.preview = tensor


def forget():
    KEPT.clear()
    CALLBACKS.clear()
    KeepsInCycle.last = None


NODE_CLASS_MAPPINGS = {
    "LeakKeepsInGlobal": KeepsInGlobal,
    "LeakKeepsInCycle": KeepsInCycle,
    "LeakDropsCycle": DropsCycle,
    "LeakKeepsInClosure": KeepsInClosure,
    "LeakKeepsInInstance": KeepsInInstance,
}

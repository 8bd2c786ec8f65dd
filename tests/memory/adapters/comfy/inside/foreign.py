"""Stand-ins for what other packs make of patchers and models.

They override the methods the packs override, with the same signatures and effects.
"""

from __future__ import annotations

import comfy.cli_args
import comfy.lora
import comfy.model_patcher as mp
import comfy.utils
import torch
from small import CPU, DEVICE, Model

LEVEL = 1 / 64


class Quantised(torch.nn.Linear):
    """As a GGML layer: streams by itself, unpacks at every call, applies its weight's own LoRAs."""

    comfy_cast_weights = True

    def __init__(self, source: torch.nn.Linear) -> None:
        super().__init__(1, 1, bias=False)
        packed = (source.weight / LEVEL).round().clamp(-127, 127).to(torch.int8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.bias = None
        self.weight_function = []
        self.bias_function = []
        self.loras: list[tuple[object, str]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.to(x.device, torch.float32) * LEVEL
        for patches, key in self.loras:
            weight = comfy.lora.calculate_weight(patches, weight, key)
        return torch.nn.functional.linear(x, weight)


class GGUFModelPatcher(mp.ModelPatcher):
    """LoRAs stay beside the packed weight; clones get this class whatever class they come from."""

    patch_on_device = False
    forced: list[bool]

    def patch_weight_to_device(self, key, device_to=None, inplace_update=False):
        if key not in self.patches:
            return
        layer = comfy.utils.get_attr(self.model, key.rsplit(".", 1)[0])
        layer.loras = [(self.patches[key], key)]
        if device_to is not None:
            layer.to(device_to)

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        if unpatch_weights:
            for module in self.model.modules():
                if isinstance(module, Quantised):
                    module.loras = []
        return super().unpatch_model(device_to=device_to, unpatch_weights=unpatch_weights)

    def load(self, *args, force_patch_weights=False, **kwargs):
        super().load(*args, force_patch_weights=True, **kwargs)

    def clone(self, *args, **kwargs):
        kind = self.__class__
        self.__class__ = GGUFModelPatcher
        clone = super().clone(*args, **kwargs)
        clone.__class__ = GGUFModelPatcher
        self.__class__ = kind
        clone.patch_on_device = self.patch_on_device
        if kind is not GGUFModelPatcher:
            clone.size = 0
        return clone


def gguf() -> GGUFModelPatcher:
    model = Model()
    blocks = model.diffusion_model.blocks
    for index, block in enumerate(blocks):
        blocks[index] = Quantised(block)
    return GGUFModelPatcher(model, DEVICE, CPU)


class Mover(mp.ModelPatcher):
    """Moves a whole model by itself, as Nunchaku's patcher does."""

    def load(
        self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False
    ):
        with self.use_ejected():
            self.model.diffusion_model.to(device_to)

    def detach(self, unpatch_all=True):
        self.eject_model()
        self.model.diffusion_model.to(self.offload_device)


class Plain(torch.nn.Module):
    """Layers of another library: none of ComfyUI's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.layer = torch.nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Engine:
    """As of TensorRT: weights ComfyUI does not see."""

    dtype = torch.float16

    def state_dict(self) -> dict[str, object]:
        return {}


def plain(kind: type = mp.ModelPatcher) -> mp.ModelPatcher:
    return kind(Model(), DEVICE, CPU)


def with_inner(inner: object) -> mp.ModelPatcher:
    model = Model()
    del model.diffusion_model
    model.diffusion_model = inner
    return mp.ModelPatcher(model, DEVICE, CPU)

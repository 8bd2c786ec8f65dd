"""The npu flavour: PrivateUse1 renamed, with ``torch.npu`` and a stand-in ``torch_npu``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

from .build import load_core
from .device_module import functions

# The first allocates intermediates the kernel does not; the second makes the result apart from the
# operator, so that the operator would not be named as the peak's.
DECOMPOSITIONS = ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
STAND_IN = Path(__file__).resolve().parent / "site" / "npu" / "torch_npu" / "__init__.py"


def install() -> ModuleType:
    """Register the device, ``torch.npu`` and ``torch_npu``; returns the compiled core."""
    core = load_core("npu")
    core.init()
    torch.utils.rename_privateuse1_backend("npu")
    core.register_boxed(decomposed_operators())
    module = ModuleType("torch.npu")
    for name, value in functions(core, "npu", "Simulated NPU").items():
        setattr(module, name, value)
    module.default_generators = (core.default_generator(0),)
    torch._register_device_module("npu", module)
    torch.utils.generate_methods_for_privateuse1_backend(for_tensor=True, for_storage=True)
    # Machines with this kind of device run a torch without CUDA; on a CUDA wheel ComfyUI would
    # take the version alone for an NVIDIA card, and never unload.
    torch.version.cuda = None
    if "torch_npu" not in sys.modules:
        spec = importlib.util.spec_from_file_location("torch_npu", STAND_IN)
        stand_in = importlib.util.module_from_spec(spec)
        sys.modules["torch_npu"] = stand_in
        spec.loader.exec_module(stand_in)
    return core


def decomposed_operators() -> list[str]:
    """Operators with a kernel on every real device that PrivateUse1 would run decomposed."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [
        name.removeprefix("aten::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::")
        and name not in ("aten::copy_",)
        and has(name, "CPU")
        and any(has(name, key) for key in DECOMPOSITIONS)
        and not has(name, "PrivateUse1")
    ]

"""The cuda flavour: the CUDA device type of a stock CUDA wheel, on a machine without a driver."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch

from .build import load_core
from .device_module import functions

# Kernels the core registers itself for the CUDA key.
EXPLICIT = frozenset(
    {
        "aten::empty.memory_format",
        "aten::empty_strided",
        "aten::copy_",
        "aten::_local_scalar_dense",
        "aten::record_stream",
        "aten::as_strided",
        "aten::view",
        "aten::_reshape_alias",
        "aten::set_.source_Storage_storage_offset",
        "aten::set_.source_Storage",
        "aten::set_.source_Tensor",
        "aten::convolution",
        "aten::scaled_dot_product_attention",
        "aten::_to_copy",
    }
)
ALREADY_REGISTERED, NOT_REGISTERED = 712, 713  # cudaErrorHostMemory...


def install() -> ModuleType:
    """Take the CUDA device type over and patch ``torch.cuda``; returns the compiled core."""
    if torch.version.cuda is None:
        raise RuntimeError("the cuda flavour needs a CUDA build of torch; use npu on this one")
    if torch.cuda.is_available():
        raise RuntimeError("a real CUDA device is present: the cuda flavour must not replace it")
    cuda = torch.cuda
    cuda._lazy_init = lambda: None
    cuda._initialized = True
    core = load_core("cuda")
    core.init()
    core.register_boxed(shared_operators())
    table = functions(core, "cuda", "Simulated GPU")
    table.update(
        cudart=lambda: Runtime(core),
        get_allocator_backend=lambda: "native",
        current_blas_handle=lambda: 0,
    )
    for name, value in table.items():
        setattr(cuda, name, value)
        if hasattr(cuda.memory, name):
            setattr(cuda.memory, name, value)
    _patch_factories(core)
    return core


def shared_operators() -> list[str]:
    """Operators with a CUDA kernel and a way on the CPU: the boxed fallback replaces the former.

    A way on the CPU is a kernel, or a composition of other operators (``_fused_rms_norm``).
    """
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [
        name.removeprefix("aten::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::")
        and name not in EXPLICIT
        and has(name, "CUDA")
        and (has(name, "CPU") or has(name, "CompositeImplicitAutograd"))
    ]


class Runtime:
    """The calls of ``torch.cuda.cudart()`` that ComfyUI makes; 0 is cudaSuccess."""

    def __init__(self, core: ModuleType) -> None:
        self._core = core

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:
        return 0 if self._core.host_register(pointer, size) else ALREADY_REGISTERED

    def cudaHostUnregister(self, pointer: int) -> int:
        return 0 if self._core.host_unregister(pointer) else NOT_REGISTERED

    def cudaMemGetInfo(self, device: int = 0) -> tuple[int, int]:
        return self._core.mem_info(device)


class _GeneratorType(type(torch._C.Generator)):
    """``torch.Generator`` stays the type of every generator for isinstance."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)


def _patch_factories(core: ModuleType) -> None:
    """What torch would ask the driver for: generators, and pinned memory in factory calls."""

    class Generator(torch._C.Generator, metaclass=_GeneratorType):
        def __new__(cls, device: Any = "cpu") -> torch._C.Generator:
            where = torch.device(device)
            if where.type != "cuda":
                return torch._C.Generator(device=device)
            return core.new_generator(core.current_device() if where.index is None else where.index)

    torch.Generator = Generator

    def pinnable(original: Any) -> Any:
        @functools.wraps(original)
        def make(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
            tensor = original(*args, **kwargs)
            return tensor.pin_memory() if pin_memory and tensor.device.type == "cpu" else tensor

        return make

    for name in ("empty", "zeros", "ones", "full", "empty_like", "zeros_like", "empty_strided"):
        setattr(torch, name, pinnable(getattr(torch, name)))

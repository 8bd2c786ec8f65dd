"""The cuda flavour: the CUDA device type of a stock CUDA wheel, on a machine without a driver."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from .build import load_core
from .device_module import functions

# Kernels the core registers itself for the CUDA key.
EXPLICIT = frozenset(
    "aten::" + name
    for name in (
        "empty.memory_format empty_strided copy_ _local_scalar_dense record_stream as_strided view "
        "_reshape_alias set_.source_Storage_storage_offset set_.source_Storage set_.source_Tensor "
        "convolution scaled_dot_product_attention _to_copy is_pinned _pin_memory"
    ).split()
)


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
    _patch_pinning(core)
    return core


def shared_operators() -> list[str]:
    """Operators with both a CPU and a CUDA kernel: the boxed fallback replaces the latter."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [
        name.removeprefix("aten::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::")
        and name not in EXPLICIT
        and has(name, "CUDA")
        and has(name, "CPU")
    ]


class Runtime:
    """The calls of ``torch.cuda.cudart()`` that ComfyUI makes; 0 is cudaSuccess."""

    def __init__(self, core: ModuleType) -> None:
        self._core = core

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:
        self._core.host_register(pointer, size)
        return 0

    def cudaHostUnregister(self, pointer: int) -> int:
        self._core.host_unregister(pointer)
        return 0

    def cudaMemGetInfo(self, device: int = 0) -> tuple[int, int]:
        return self._core.mem_info(device)


def _patch_pinning(core: ModuleType) -> None:
    """Pinned memory through the counted allocator: the driver's is not there."""

    def factory(original: Any) -> Any:
        def make(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
            tensor = original(*args, **kwargs)
            return core.pin(tensor) if pin_memory and tensor.device.type == "cpu" else tensor

        return make

    for name in ("empty", "zeros", "ones", "full", "empty_like", "zeros_like", "empty_strided"):
        setattr(torch, name, factory(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda self, device=None: core.pin(self)
    torch.Tensor.is_pinned = lambda self, device=None: core.is_pinned(self)

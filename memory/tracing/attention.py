"""Scaled dot-product attention as CUDA computes it: what its fused kernels allocate.

Without a GPU torch would choose the kernel of the CPU, or none. Flash attention takes half
precision, no mask and heads up to 256 channels; the memory-efficient kernel the rest; ``math``
writes the whole matrix of scores. Output first, then the log-sum-exp in float32, padded to the
kernel's rows; the memory-efficient kernel accumulates heads wider than 128 in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

KINDS = ("fused", "efficient", "math", "bare")
"""``efficient``: a GPU without flash attention; ``bare``: the output and nothing else."""

_library = torch.library.Library("lowtide_trace", "DEF")
_library.define("attend(Tensor q, Tensor k, Tensor v) -> ()")
_library.impl("attend", lambda q, k, v: None, "CompositeExplicitAutograd")


class FusedAttention(TorchFunctionMode):
    """Replaces ``scaled_dot_product_attention`` by what the kernel ``kind`` allocates."""

    def __init__(self, kind: str = "fused") -> None:
        super().__init__()
        self.kind = kind

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self._attend(*args, **kwargs)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if query.device.type == "cpu" or self.kind == "math":
            with torch._C.DisableTorchFunction():
                if query.device.type != "cpu":
                    return torch.ops.aten._scaled_dot_product_attention_math(
                        query, key, value, attn_mask, 0.0, is_causal, scale=scale,
                        enable_gqa=enable_gqa,
                    )[0]  # fmt: skip
                return torch.nn.functional.scaled_dot_product_attention(
                    query, key, value, attn_mask, dropout_p, is_causal,
                    scale=scale, enable_gqa=enable_gqa,
                )  # fmt: skip
        return self._fused(query, key, value, attn_mask)

    def _fused(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        *batch, rows, channels = query.shape
        wide = value.shape[-1]
        heads = batch[-1] if batch else 1
        images = math.prod(batch[:-1]) if len(batch) > 1 else 1
        half = query.dtype in (torch.float16, torch.bfloat16)
        flash = (
            self.kind == "fused"
            and half
            and mask is None
            and channels <= 256
            and channels == wide
            and channels % 8 == 0
        )
        empty, device = torch.empty, query.device
        # Heads beside each other in memory: that is how the kernels write, and what a model then
        # need not copy.
        out = empty((images, rows, heads, wide), dtype=query.dtype, device=device).transpose(1, 2)
        beside: list[torch.Tensor] = []
        if self.kind != "bare":
            padded = -(-rows // (128 if flash else 32)) * (128 if flash else 32)
            beside.append(empty((images, heads, padded), dtype=torch.float32, device=device))
            if not flash and mask is not None and mask.dtype == torch.bool:
                beside.append(empty(mask.shape, dtype=query.dtype, device=device))
            if not flash and half and wide > 128:
                shape = (images, rows, heads, wide)
                beside.append(empty(shape, dtype=torch.float32, device=device))
        torch.ops.lowtide_trace.attend(query, key, value)
        del beside
        return out.reshape(*batch, rows, wide) if len(batch) != 2 else out


def flops_of_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    """Operations of both products."""
    *batch, rows, channels = query.shape
    return 2 * math.prod(batch) * rows * key.shape[-2] * (channels + value.shape[-1])

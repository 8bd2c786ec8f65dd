"""Stand-in for Ascend's torch_npu: importing it activates the simulated npu device."""

import sys

import torch

__version__ = torch.__version__.partition("+")[0]

if getattr(sys, "lowtide_sim_handle", None) is None and "torch.npu" not in sys.modules:
    import sitecustomize

    sitecustomize.load_package().activate("npu")


def npu_rms_norm(x, weight, epsilon=1e-6):
    """RMS norm and the reciprocal of its root; diffusers reads the first."""
    rstd = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + epsilon)
    return (x.float() * rstd).to(x.dtype) * weight, rstd


def npu_geglu(x, dim=-1, approximate=1):
    """GEGLU of the two halves of x along dim, and the gate."""
    value, gate = x.chunk(2, dim)
    gate = torch.nn.functional.gelu(gate, approximate="tanh" if approximate else "none")
    return value * gate, gate


def npu_fusion_attention(*args, **kwargs):
    """Ascend's own attention: importable, as transformers expects, but nothing computes it."""
    raise RuntimeError("the simulated npu has no fused attention but torch's scaled_dot_product")

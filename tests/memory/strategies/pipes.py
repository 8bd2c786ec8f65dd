"""What the tests of the strategies share: pipelines, runs, and everything an undo must restore."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from lowtide.memory.adapters.diffusers import modules_of
from lowtide.memory.adapters.synthetic.build import build, run

PLAIN = (bool, int, float, str, type(None), tuple, torch.device, torch.dtype)


def image(pipe: Any, **settings: Any) -> torch.Tensor:
    """A short run at 128 x 128."""
    return run(pipe, **{"size": 128, "steps": 2, **settings})


def tiny(name: str = "tiny-sd15", dtype: str = "float16") -> Any:
    return build(name, dtype)


def values(pipe: Any) -> dict[str, torch.Tensor]:
    """Every weight and buffer, copied."""
    return {
        f"{part}.{name}": tensor.detach().clone()
        for part, module in modules_of(pipe).items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


def same_values(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit-exact equality, device and type included."""
    return one.keys() == other.keys() and all(
        a.device == other[n].device and a.dtype == other[n].dtype and torch.equal(a, other[n])
        for n, a in one.items()
    )


def structure(pipe: Any) -> dict[str, Any]:
    """Attributes, hooks, parameter identities, signatures and configuration, comparable by ==."""
    found: dict[str, Any] = {"pipeline": _plain(vars(pipe)) | {"names": sorted(vars(pipe))}}
    for part, module in modules_of(pipe).items():
        for name, sub in module.named_modules():
            found[f"{part}.{name}"] = {
                "attributes": sorted(vars(sub)),
                "plain": _plain(vars(sub)),
                "parameters": {
                    n: (id(p), p is not None and p.requires_grad)
                    for n, p in sub._parameters.items()
                },
                "buffers": {n: id(b) for n, b in sub._buffers.items()},
                "signature": str(inspect.signature(sub.forward)),
                "torch hooks": (len(sub._forward_hooks), len(sub._forward_pre_hooks)),
                "processor": id(getattr(sub, "processor", None)),
                "pinned": [t.is_pinned() for t in sub.parameters(recurse=False)],
            }
        config = getattr(module, "config", None)
        found[f"{part} config"] = str(config)
    return found


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    return {n: v for n, v in attributes.items() if isinstance(v, PLAIN)}

"""Takes what a model holds on an accelerator off it, whoever put it there, and leaves it usable.

Three owners of a weight are told apart, because each wants it back differently:

* Lowtide's own turns keep the host's tensors, and put them back;
* diffusers' group offload keeps a host copy: its groups offload themselves;
* accelerate's sequential offload keeps the weights in a map and ``meta`` tensors in the module:
  a forward that broke off is finished, nothing is copied;
* everything else is copied to the host.

Tensors that accelerate's hooks expect on the device without moving them (buffers, mostly) come
back at the next forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .targets import parts_of
from .tensors import device_bytes, on_accelerator, replace_plain

LEAVE = "_lowtide_leave"
"""The attribute of a component under which its turns (``strategies/turns``) say how it leaves."""


def evict(owner: Any, device: torch.device | None = None) -> int:
    """Leave ``owner`` without a byte on ``device`` (``None`` = any accelerator).

    Returns the bytes it held there. A module stays usable: where hooks move weights by
    themselves as before, elsewhere on the CPU until it is moved again.
    """
    held = device_bytes(owner, device)
    if not held:
        return 0
    if isinstance(owner, torch.nn.Module):
        _leave_turn(owner)
        for module in owner.modules():
            _offload_groups(module, device)
            _finish_offload(module, device)
        for module in owner.modules():
            _to_host(module, device)
    else:
        replace_plain(owner, lambda tensor: _host_copy(tensor, device))
    return held


def _leave_turn(component: torch.nn.Module) -> None:
    """Let a component that takes turns on the device leave as after its turn."""
    leave = vars(component).get(LEAVE)
    if leave is not None:
        leave()


def _host_copy(tensor: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    return tensor.to("cpu") if on_accelerator(tensor, device) else tensor


def _own_tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _offload_groups(module: torch.nn.Module, device: torch.device | None) -> None:
    """Let diffusers' group offloading put back what a prefetch or an interrupt left onloaded."""
    registry = getattr(module, "_diffusers_hook", None)
    for hook in getattr(registry, "hooks", {}).values():
        group = getattr(hook, "group", None)
        if group is None:
            continue
        tensors = [t for member in group.modules for t in (*member.parameters(), *member.buffers())]
        tensors += [*group.parameters, *group.buffers]
        if any(on_accelerator(tensor, device) for tensor in tensors):
            group.offload_()


def _hooks(module: torch.nn.Module) -> Iterator[Any]:
    """accelerate's hooks on this very module, a chain of them one by one."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def _finish_offload(module: torch.nn.Module, device: torch.device | None) -> None:
    """Do what the hook of a broken-off forward could not do any more: drop the onloaded copy."""
    if not any(on_accelerator(tensor, device) for tensor in _own_tensors(module)):
        return
    for hook in _hooks(module):
        if getattr(hook, "offload", False) is True and hasattr(hook, "tied_pointers_to_remove"):
            hook.post_forward(module, None)


def _to_host(module: torch.nn.Module, device: torch.device | None) -> None:
    placed = next((h for h in _hooks(module) if hasattr(h, "weights_map")), None)
    if placed is not None:
        _lend(module, device)
    replace_plain(module, lambda tensor: _host_copy(tensor, device))
    if any(on_accelerator(tensor, device) for tensor in _own_tensors(module)):
        module._apply(lambda tensor: _host_copy(tensor, device), recurse=False)


def _lend(module: torch.nn.Module, device: torch.device | None) -> None:
    """Bring what ``module`` keeps on the device back before its next forward.

    Only while the same hook is in charge: after an undo the module belongs to someone else.
    """
    hook = module._hf_hook
    names = [
        name
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        )
        if on_accelerator(tensor, device)
    ]
    homes = {name: getattr(module, name).device for name in names}
    if not homes:
        return

    def bring_back(owner: torch.nn.Module, _args: Any) -> None:
        handle.remove()
        if getattr(owner, "_hf_hook", None) is not hook:
            return
        for name, home in homes.items():
            tensor = getattr(owner, name)
            if tensor.device.type != "meta":
                tensor.data = tensor.data.to(home)

    handle = module.register_forward_pre_hook(bring_back)


def clear_of_tables(pipe: Any, device: torch.device) -> None:
    """Take a pipeline's schedulers and the like off ``device``, once no weight is there."""
    parts = [part for _, part in parts_of(pipe)]
    weights = [part for part in parts if isinstance(part, torch.nn.Module)]
    if any(weight.device == device for part in weights for weight in part.parameters()):
        return
    for part in parts:
        if not isinstance(part, torch.nn.Module):
            evict(part, device)

"""Weights that were moved outside inference mode, made usable in it again.

ComfyUI loads and computes in torch's inference mode, and unloads outside of it where it serves its
own ``/free``. A weight that was made in that mode and given other data outside has neither mode's
rights: torch refuses views of it, which streaming and encoding take ("Inference tensors do not
track version counter"). Lowtide moves weights in inference mode, and renews what it finds.
"""

from __future__ import annotations

from typing import Any

import torch


def renew(model: Any) -> int:
    """Put new parameters, with the same storage, in the place of such; returns how many.

    Parameters of other classes stay; one that is shared between modules stays shared.
    """
    made: dict[int, Any] = {}
    with torch.inference_mode(False):
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if _is_neither(parameter):
                    found = made.get(id(parameter))
                    if found is None:
                        # ``data`` has a version counter of its own.
                        found = torch.nn.Parameter(parameter.data, parameter.requires_grad)
                        made[id(parameter)] = found
                    module._parameters[name] = found
    return len(made)


def _is_neither(parameter: Any) -> bool:
    """Whether it counts as made outside inference mode, but has no version counter."""
    if type(parameter) is not torch.nn.Parameter or parameter.is_inference():
        return False
    try:
        return parameter._version is None
    except RuntimeError:
        return True

"""A simulated accelerator: a torch device whose memory is counted, capped host memory.

``activate()`` turns it on for the process; README.md says what it counts and what it does not.
Importing this package does nothing to torch.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .control import Accelerator

__all__ = ["activate", "current", "flavour_from_env"]

# The package can be imported under several names in one process (pytest's, the pack's, the
# sitecustomize's), while there is one device: so its handle lives beside the modules.
_HANDLE = "lowtide_sim_handle"


def flavour_from_env() -> str:
    """``npu`` unless LOWTIDE_SIM says ``cuda``."""
    return os.environ.get("LOWTIDE_SIM") or "npu"


def current() -> Accelerator | None:
    """The handle of the active accelerator, None before ``activate``."""
    return getattr(sys, _HANDLE, None)


def activate(
    flavour: str | None = None,
    capacity: int | str | None = None,
    devices: int | None = None,
    poison: bool | None = None,
    keep_pages: bool | None = None,
) -> Accelerator:
    """Install the accelerator in this process and return its handle; again: reconfigure it.

    flavour: "npu" (torch.device("npu")) or "cuda" (the CUDA device type, on a CUDA wheel without a
    driver); None takes LOWTIDE_SIM, else npu. One process has one flavour: another raises
    RuntimeError. What is None comes from LOWTIDE_SIM_CAPACITY ("8G"), LOWTIDE_SIM_DEVICES (1),
    LOWTIDE_SIM_POISON (0) and LOWTIDE_SIM_KEEP_PAGES (0) on the first call. Call it before any
    other use of the device.
    """
    from .control import DEFAULT_CAPACITY, Accelerator

    flavour = flavour or flavour_from_env()
    handle = current()
    if handle is None:
        if flavour == "npu":
            from .npu import install
        elif flavour == "cuda":
            from .cuda import install
        else:
            raise ValueError(f"unknown flavour {flavour!r}: choose npu or cuda")
        handle = Accelerator(install(), flavour)
        setattr(sys, _HANDLE, handle)
        env = os.environ.get
        capacity = capacity or env("LOWTIDE_SIM_CAPACITY") or DEFAULT_CAPACITY
        devices = devices or int(env("LOWTIDE_SIM_DEVICES") or 1)
        poison = env("LOWTIDE_SIM_POISON") == "1" if poison is None else poison
        keep_pages = env("LOWTIDE_SIM_KEEP_PAGES") == "1" if keep_pages is None else keep_pages
    elif handle.flavour != flavour:
        raise RuntimeError(
            f"the {handle.flavour} flavour is active in this process; start another for {flavour}"
        )
    return handle(capacity=capacity, devices=devices, poison=poison, keep_pages=keep_pages)

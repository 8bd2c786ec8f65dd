"""Where the bench measures: the accelerator there is, else the simulated one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from ..memory import backend
from ..memory.errors import ConfigError, DeviceError

FLAVOURS = ("npu", "cuda")
DEFAULT_CAPACITY = "24G"

NOT_COUNTED = (
    "The simulated accelerator counts the tensors on the device, rounded and cached in segments "
    "as torch's CUDA allocator does. It does not count the device's context (some hundred MB), "
    "the workspaces of cuDNN and cuBLAS, other scratch inside kernels, or other programs. Seconds "
    "and time ratios on it are CPU time: they say nothing about a GPU's speed."
)


@dataclass(frozen=True)
class Place:
    """A device, and the simulated accelerator's handle if that is what it is."""

    device: torch.device
    simulated: Any = None

    @property
    def name(self) -> str:
        return f"{self.device} ({'simulated' if self.simulated else 'real'})"

    @property
    def on_host(self) -> bool:
        """Whether the host's CPU does the work and its RAM holds the tensors."""
        return self.simulated is not None or self.device.type == "cpu"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of figures from here has to know."""
        return (NOT_COUNTED,) if self.simulated else ()

    def counters(self) -> dict[str, int] | None:
        """Bytes moved and more, since the process began; ``None`` on a real device."""
        return None if self.simulated is None else self.simulated.counters()


def choose(
    device: str | None = None, simulate: str | None = None, capacity: str | None = None
) -> Place:
    """The device asked for; else the best real one; else the simulated one.

    Args:
        device: a torch device, such as ``cuda:0`` or ``cpu``.
        simulate: ``npu`` or ``cuda``: the simulated accelerator in that flavour.
        capacity: memory of the simulated accelerator, such as ``8G``.

    Raises:
        ConfigError: both a device and a flavour were given, a flavour that does not exist, or a
            capacity that is no amount or not the simulated accelerator's.
        DeviceError: no such device, or no accelerator of either kind.
    """
    if device is not None and simulate is not None:
        raise ConfigError(f"give --device {device} or --simulate {simulate}, not both")
    if capacity is not None and simulate is None and (device or backend.available_types()):
        raise ConfigError(capacity_unused(capacity))
    if device is not None:
        return Place(backend.device_of(device))
    if simulate is None and backend.available_types():
        return Place(backend.device_of())
    if simulate is not None and simulate not in FLAVOURS:
        raise ConfigError(f"no simulated {simulate!r}; choose {' or '.join(FLAVOURS)}")
    handle = _activate(simulate or FLAVOURS[0], capacity or DEFAULT_CAPACITY)
    return Place(handle.device, handle)


def capacity_unused(capacity: str) -> str:
    """What to say to a capacity without the simulated accelerator."""
    return (
        f"--capacity {capacity} sets the simulated accelerator's memory, which is not used here; "
        f"add --simulate {FLAVOURS[0]}, or leave it out"
    )


def _activate(flavour: str, capacity: str) -> Any:
    root = __package__.rpartition(".")[0]
    try:
        simulator = import_module(f"{root}.tests.accelerator")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith(f"{root}.tests"):
            raise
        raise DeviceError(
            "there is no accelerator here, and the simulated one comes with the source checkout "
            "only; run `python -m` on a checkout, or measure on the CPU with --device cpu"
        ) from None
    try:
        import_module(f"{root}.tests.accelerator.control").parse_bytes(capacity)
    except ValueError as error:
        raise ConfigError(f"--capacity: {error}") from None
    return simulator.activate(flavour, capacity)

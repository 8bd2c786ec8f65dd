"""How fast a device is and what it costs to begin with: the figures a plan's times rest on.

A profile is measured once per machine (``profile_measure.py``) and kept; until then the published
figures of the card stand in for it (``profile_published.py``), and ``measured`` is ``False``.
No torch here: a plan is made before it is loaded.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError


@dataclass(frozen=True)
class DeviceProfile:
    """What a device achieves, not what its box promises.

    Attributes:
        name: the device, as its driver calls it.
        h2d_pinned: bytes per second from pinned host memory to the device.
        h2d_pageable: the same from ordinary host memory.
        flops: floating-point operations per second of large products in half precision, one
            multiplication and one addition counted as two.
        bandwidth: bytes per second read from and written to the device's own memory, together.
        context_bytes: what a process takes on the device before it holds a single tensor.
        workspace_factor: by how much the scratch memory of convolutions differs from the rule of
            the planner, which is the bytes of input, weight and output together.
        measured: whether this machine gave the figures.
        source: where they are from, a sentence for people.
    """

    name: str
    h2d_pinned: float
    h2d_pageable: float
    flops: float
    bandwidth: float
    context_bytes: int
    workspace_factor: float
    measured: bool
    source: str

    def __post_init__(self) -> None:
        for field in ("h2d_pinned", "h2d_pageable", "flops", "bandwidth"):
            value = getattr(self, field)
            if not _number(value) or value <= 0:
                raise ConfigError(
                    f"`{field}` of a device profile is {value!r}; it takes a rate per second, "
                    f"more than 0"
                )
        for field in ("context_bytes", "workspace_factor"):
            value = getattr(self, field)
            if not _number(value) or value < 0:
                raise ConfigError(f"`{field}` of a device profile is {value!r}; it takes 0 or more")

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DeviceProfile:
        """The profile :meth:`to_dict` described.

        Raises:
            ConfigError: a field is missing, unknown, or no such value.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != fields:
            raise ConfigError(f"this is no device profile; it has the fields {sorted(fields)}")
        if not isinstance(values["name"], str) or not isinstance(values["measured"], bool):
            raise ConfigError(
                "this is no device profile: its name or `measured` is of another type"
            )
        return cls(**values)

    def text(self) -> str:
        """The profile for a person, one line."""
        giga = 1e9
        return (
            f"{self.name}: {self.flops / 1e12:.3g} TFLOP/s in half precision, "
            f"{self.bandwidth / giga:.3g} GB/s of its own memory, from the host "
            f"{self.h2d_pinned / giga:.3g} GB/s pinned and {self.h2d_pageable / giga:.3g} GB/s not "
            f"({'measured here' if self.measured else 'not measured yet'}; {self.source})"
        )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

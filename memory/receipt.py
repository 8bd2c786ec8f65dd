"""The receipt of a cleanup: what was held before, who gave what back, what is left."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from . import backend
from .holders import Holder
from .host import process_rss
from .units import format_bytes

CACHE = "allocator cache"
"""Owner of segments torch's allocator held without a tensor in them."""

OTHERS = "unreferenced tensors"
"""Owner of tensors that belonged to no target and that nobody referred to any more."""


@dataclass(frozen=True)
class Reading:
    """A device and this process at one moment, in bytes; ``None`` is unknown.

    ``free`` is what the driver could still give to anyone.
    """

    allocated: int | None
    reserved: int | None
    free: int | None
    host_rss: int

    @classmethod
    def of(cls, device: torch.device) -> Reading:
        """Read now. A device that was never used is left alone: a context would cost memory."""
        ready = backend.is_initialized(device)
        info = backend.mem_get_info(device) if ready and device.type != "cpu" else None
        return cls(
            allocated=backend.allocated(device),
            reserved=backend.reserved(device),
            free=None if info is None else info[0],
            host_rss=process_rss(),
        )


@dataclass(frozen=True)
class Receipt:
    """What :func:`lowtide.memory.cleanup.release` did.

    Attributes:
        device: where it was measured.
        before, after: the readings around it.
        by_owner: bytes given back on the device, by component; the allocator's cache and
            unreferenced tensors apart. Together they are the fall of ``reserved``.
        remaining: bytes the targets still hold on the device; 0 unless an error says why.
        seconds: wall time of all of it.
        collect_seconds: part of it spent in the garbage collector.
        trimmed: the call that trimmed the host's heap, if one did.
        errors: what failed; everything else was done all the same.
        holders: who holds what is left on the device, where that was looked for.
        host_holders: who is known to hold host memory: the host program's cached results and the
            models in them, pinned memory. Not all of it: the rest of the process has no names.
    """

    device: str
    before: Reading
    after: Reading
    by_owner: dict[str, int]
    remaining: int
    seconds: float
    collect_seconds: float
    trimmed: str | None
    errors: tuple[str, ...]
    holders: tuple[Holder, ...] = ()
    host_holders: tuple[Holder, ...] = ()

    @property
    def freed(self) -> int | None:
        """Bytes given back to the driver: the fall of ``reserved``."""
        if self.before.reserved is None or self.after.reserved is None:
            return None
        return self.before.reserved - self.after.reserved

    @property
    def freed_host(self) -> int:
        """Bytes by which the process's RSS fell; negative if weights came to the host."""
        return self.before.host_rss - self.after.host_rss

    def to_dict(self) -> dict[str, Any]:
        """The receipt as plain JSON values."""
        return {**asdict(self), "freed": self.freed, "freed_host": self.freed_host}

    def text(self) -> str:
        """The receipt for a person, a line each."""
        lines = [f"Released on {self.device} in {self.seconds * 1000:.0f} ms"]
        if self.freed is None:
            lines.append("  device: no allocator to measure here")
        else:
            lines.append(
                f"  device: {format_bytes(self.before.reserved)} held, "
                f"{format_bytes(self.after.reserved)} now "
                f"({format_bytes(self.after.allocated)} in live tensors)"
            )
        lines += [f"    {owner}: {format_bytes(count)}" for owner, count in self.by_owner.items()]
        if self.remaining:
            lines.append(f"  still held by what was released: {format_bytes(self.remaining)}")
        lines += [f"  still held by {it.owner}: {format_bytes(it.held)}" for it in self.holders]
        trimmed = f", heap trimmed by {self.trimmed}" if self.trimmed else ""
        lines.append(
            f"  host: {format_bytes(self.before.host_rss)} held, "
            f"{format_bytes(self.after.host_rss)} now{trimmed}"
        )
        lines += [f"    kept by {it.owner}: {format_bytes(it.held)}" for it in self.host_holders]
        lines += [f"  failed: {error}" for error in self.errors]
        return "\n".join(lines)

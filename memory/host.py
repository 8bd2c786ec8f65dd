"""The host's memory: RAM, this process's share of it, swap, and a container's limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_OF_SELF = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class HostSnapshot:
    """Bytes of host memory. In a container, total and available stay under its limit.

    ``process_rss`` counts mapped file pages too, such as those of a memory-mapped checkpoint.
    Swap readings are ``None`` where the system has none to report.
    """

    total: int
    available: int
    process_rss: int
    swap_total: int | None
    swap_used: int | None

    def to_dict(self) -> dict[str, int | None]:
        """The readings as plain JSON values."""
        return asdict(self)


def host_snapshot() -> HostSnapshot:
    """Read the host's memory now."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    for limit, used in _container_limits():
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    swap_total, swap_used = _swap()
    return HostSnapshot(
        total=total,
        available=available,
        process_rss=process_rss(),
        swap_total=swap_total,
        swap_used=swap_used,
    )


def process_rss() -> int:
    """Bytes of RAM this process occupies now."""
    return int(psutil.Process().memory_info().rss)


def _swap() -> tuple[int | None, int | None]:
    try:
        swap = psutil.swap_memory()
    except (OSError, RuntimeError):
        # Windows with disabled performance counters, or a /proc that hides vmstat.
        return None, None
    return int(swap.total), int(swap.used)


def _container_limits() -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that can't be dropped) of every cgroup v2 this process is in."""
    try:
        lines = CGROUP_OF_SELF.read_text().splitlines()
    except OSError:
        return
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    if own is None:
        return
    group = CGROUP_ROOT / own.lstrip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(CGROUP_ROOT):
            return
        limit = _number(folder / "memory.max")
        if limit is not None:
            used = _number(folder / "memory.current") or 0
            yield limit, max(0, used - _file_cache(folder))


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _file_cache(folder: Path) -> int:
    """Bytes the kernel drops on demand: counted as used by the group, free for us all the same."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return int(values.get("inactive_file", 0))

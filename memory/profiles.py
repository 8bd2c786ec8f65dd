"""The profile of this machine's device: measured once, kept in a file, published figures till then.

The file holds profiles by device and torch: another driver stack is measured anew. To have a
device measured again, delete the file. ``python -m lowtide plan`` measures at its first use. In
ComfyUI it is done between prompts (``adapters/comfy/profiling.py``), but for
``LOWTIDE_PROFILE=off``. No torch here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import learning, stores
from .errors import ConfigError
from .profile import DeviceProfile
from .profile_published import assumed
from .run_key import gpu_name

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from .profile_measure import Probe

logger = logging.getLogger("lowtide")

NAME = "profiles-1.json"
MOST = 32
"""Profiles kept in the file, the oldest forgotten first."""

SWITCH = "LOWTIDE_PROFILE"

_lock = threading.Lock()
_known: dict[str, DeviceProfile] = {}


def key_of(name: str, torch_version: str) -> str:
    """What a profile is kept under."""
    return f"{name}, torch {torch_version}"


def known(name: str, torch_version: str) -> DeviceProfile:
    """The device's profile as far as it is known now: nothing is measured here."""
    key = key_of(name, torch_version)
    return _known.get(key) or _load(_path()).get(key) or assumed(name)


def by_itself() -> bool:
    """Whether a device may be measured unasked, between prompts: unless the environment says no."""
    return os.environ.get(SWITCH, "").strip().lower() not in learning.OFF


def measured(
    device: str | torch.device | None = None, *, seconds: float | None = None
) -> DeviceProfile:
    """The device's profile, measured now if this machine has not done so yet.

    Within 10 seconds, on a common GPU about one. What could not be measured in that time stays as
    published, and is not tried again in this process.

    Raises:
        DeviceError: there is no such device.
    """
    from . import backend, profile_measure
    from .profile_probe import DeviceProbe

    where = backend.device_of(device)
    name, version, gpu = _names(where)
    key = key_of(name, version)
    with _lock:
        found = _known.get(key) or _load(_path()).get(key)
        if found is None:
            longest = profile_measure.SECONDS if seconds is None else seconds
            found = profile_measure.measure(
                assumed(name), lambda: DeviceProbe(where), seconds=longest
            )
            logger.info("%s", found.text())
            if found.measured:
                _keep(key, gpu, found)
        _known[key] = found
        return found


def measured_aside(
    device: torch.device,
    probe: Callable[[], Probe],
    *,
    longest: float,
    halted: Callable[[], bool],
) -> bool:
    """Measure a device while nobody waits for it; whether that is done. Within 10 seconds.

    What was found until ``halted``, and what is not whole, is dropped.

    Args:
        probe, longest, halted: as ``profile_measure.measure`` takes them.
    """
    from . import profile_measure

    name, version, gpu = _names(device)
    key = key_of(name, version)
    with _lock:
        if known(name, version).measured:
            return True
        found = profile_measure.measure(assumed(name), probe, longest=longest, halted=halted)
        if halted() or not found.measured:
            logger.debug("the device's profile is not known yet: %s", found.source)
            return False
        logger.info("%s", found.text())
        _keep(key, gpu, found)
        _known[key] = found
        return True


def _names(device: torch.device) -> tuple[str, str, str]:
    """The device's name, torch's version, and what the history calls both."""
    import torch

    from .device import snapshot

    reading, version = snapshot(device), str(torch.__version__)
    return reading.name, version, gpu_name(reading, version)


def _keep(key: str, gpu: str, found: DeviceProfile) -> None:
    """Save a profile; what was predicted by other figures corrects nothing any more."""
    _save(_path(), key, found)
    learning.outdate(gpu)


def forget() -> None:
    """Know nothing in this process any more; the file stays."""
    _known.clear()


def _path() -> Path | None:
    try:
        return stores.folder() / NAME
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        logger.debug("no folder for the device's profile: %s", error)
        return None


def _load(path: Path | None) -> dict[str, DeviceProfile]:
    """The profiles of the file; what is damaged counts as not measured."""
    if path is None:
        return {}
    try:
        held: Any = json.loads(path.read_text(encoding="utf-8"))
        items = held.items()
    except (OSError, ValueError, AttributeError):
        return {}
    found = {}
    for key, values in items:
        try:
            found[key] = DeviceProfile.from_dict(values)
        except ConfigError as error:
            logger.debug("a profile in %s is left out: %s", path, error)
    return found


def _save(path: Path | None, key: str, profile: DeviceProfile) -> None:
    if path is None:
        return
    held = _load(path)
    held.pop(key, None)
    latest = {**held, key: profile}
    kept = dict(list(latest.items())[-MOST:])
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({name: it.to_dict() for name, it in kept.items()}, indent=2)
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        logger.warning(
            "the device's profile cannot be kept in %s (%s): it is measured again by the next "
            "process. Make the folder writable, or name another one in %s",
            path,
            error,
            stores.ENVIRONMENT,
        )
        with contextlib.suppress(OSError):
            part.unlink()

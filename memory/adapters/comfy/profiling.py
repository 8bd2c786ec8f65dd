"""Measures ComfyUI's device once per machine, while no prompt runs and none waits.

After a prompt with Lowtide's nodes, on the thread of ``later.planning``. A prompt that begins ends
it at once: what was found so far is dropped, and a later prompt's end tries again. Device memory
shared with the host is left alone. ``LOWTIDE_PROFILE=off`` switches it off.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from ... import backend, profiles
from ...device import snapshot
from ...later import planning
from ...units import GIB, MIB
from . import foretold, prompt_server, runs

logger = logging.getLogger("lowtide")

MOST_TRIES = 3
"""Times measuring is begun in one process."""

LEAST_FREE = GIB
"""Bytes of the device that must be free for it."""

MOST_BYTES = 128 * MIB
"""Of one buffer, of which there are two: more than the caches of current cards together."""

LONGEST = 0.1
"""Seconds that one piece of work is to take at most: a prompt that begins waits for it."""

_PATIENCE = 2.0
"""Seconds that a prompt waits at most for what is being measured to leave the device."""

_QUIET = 1.0
"""Seconds without a prompt after which nobody is expected to begin one now."""

_SETTLING = 10.0
"""Seconds that the prompt which has ended may stay in ComfyUI's queue."""

_POLL = 0.02


class Measuring:
    """What is known of it in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._away = threading.Event()
        self._away.set()
        self._turn = 0
        self._running = False
        self._awaited = False
        self._tries = 0
        self._over = False

    def before_prompt(self) -> None:
        """A prompt begins: returns once nothing is measured any more, within 2 seconds."""
        with self._lock:
            self._turn += 1
            self._running = True
            if self._away.is_set():
                return
            self._awaited = True
        gone = self._away.wait(_PATIENCE)
        with self._lock:
            self._awaited = False
        if not gone:
            logger.info("the device is still being measured after %g seconds", _PATIENCE)

    def after_prompt(self, known: Callable[[], None]) -> None:
        """A prompt has ended: have the device measured, if that is still to be done.

        Args:
            known: called once it was, in the measuring thread.
        """
        try:
            with self._lock:
                self._running = False
            if self._over or self._tries >= MOST_TRIES or not profiles.by_itself():
                return
            if _has_our_nodes(runs.graph()):
                planning.do("device profile", lambda: self._measure(known))
        except Exception:  # no prompt fails for it
            logger.exception("the device's profile was not asked for")

    def forget(self) -> None:
        """Begin anew; what is being measured is dropped."""
        with self._lock:
            self._turn += 1
            self._running = False
            self._tries = 0
            self._over = False

    def _measure(self, known: Callable[[], None]) -> None:
        import comfy.model_management as mm

        with self._lock:
            if self._running:
                return
            turn = self._turn
        device = backend.device_of(mm.get_torch_device())
        if not _to_be_measured(device):
            self._over = True
            return

        def halted() -> bool:
            return turn != self._turn or prompt_server.busy()

        if not self._quiet(turn):
            return
        free = _free(device)
        if free is None or free < LEAST_FREE:
            logger.debug("the device is not measured now: %s bytes of it are free", free)
            return
        with self._lock:
            if turn != self._turn:
                return
            self._away.clear()
            self._tries += 1
        try:
            from ...profile_probe import SHARE, DeviceProbe

            size = min(MOST_BYTES, free // SHARE)
            done = profiles.measured_aside(
                device,
                lambda: DeviceProbe(device, size, lambda: self._alone(turn)),
                longest=LONGEST,
                halted=halted,
            )
        finally:
            self._away.set()
        if done:
            self._over = True
            _predict_anew()
            known()

    def _alone(self, turn: int) -> bool:
        """Whether no prompt runs, or the one that begins waits."""
        with self._lock:
            return turn == self._turn or self._awaited

    def _quiet(self, turn: int) -> bool:
        """Wait until the prompt has left the queue and no other follows; whether so."""
        began = quiet = time.monotonic()
        while (now := time.monotonic()) - quiet < _QUIET:
            if turn != self._turn or prompt_server.waiting() or now - began > _SETTLING:
                return False
            if prompt_server.running():
                quiet = now
            time.sleep(_POLL)
        return True


device = Measuring()
atexit.register(device.before_prompt)  # nothing is to be measured while Python ends


def _predict_anew() -> None:
    """Forget what was predicted by other figures."""
    from .overlay import planned

    foretold.forget()
    planned.forget()


def _has_our_nodes(graph: Any) -> bool:
    if graph is None:
        return False
    found = graph.get_original_prompt().values()
    return any(str(it.get("class_type", "")).startswith("Lowtide") for it in found)


def _to_be_measured(device: torch.device) -> bool:
    reading = snapshot(device)
    if reading.unified:  # the CPU's is the host's
        return False
    return not profiles.known(reading.name, str(torch.__version__)).measured


def _free(device: torch.device) -> int | None:
    """Bytes nobody uses: free, or in the allocator's cache; ``None`` where it is not known."""
    info = backend.mem_get_info(device)
    if info is None:
        return None
    allocated, reserved = backend.held(device)
    return info[0] + max(0, (reserved or 0) - (allocated or 0))

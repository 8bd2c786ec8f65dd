"""Measures a run: its peak, the peak of each stage, and what it leaves behind.

with MemoryMonitor(optimizer) as monitor:
    image = pipeline(prompt).images[0]
print(monitor.text())
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch

from . import backend
from .cleanup import release
from .errors import LowtideError, TargetError
from .monitor_rows import keep
from .peaks import Peak, PeakWindow
from .receipt import Receipt
from .stages import StageHooks
from .targets import is_device, is_optimizer, is_pipeline, pipeline_of
from .units import bytes_to_gb, format_bytes
from .verified import Verified


@dataclass(frozen=True)
class StagePeak:
    """Highest bytes in a stage's forwards, over all of them, and the stage's seconds.

    ``host`` is the process's RSS, known on the CPU only.
    """

    allocated: int | None
    reserved: int | None
    seconds: float
    host: int | None = None


class MemoryMonitor:
    """Measures the ``with`` block, stage by stage where there is a pipeline to watch.

    Figures stand after the block, whether it raised or not; an exception goes on to the caller.
    Monitors nest. Each resets torch's own peak counters of its device. The figures of an
    optimizer's pipeline go to the history, unless its configuration says no.

    Args:
        target: a MemoryOptimizer, a pipeline, a torch module or a device; ``None`` = the best
            device there is.
        release_on_exit: release memory on leaving, errors included: the pipeline or module
            leaves the device (where offload hooks are on it, it is ready for its next run; else
            move it back), and the locals of a failed run's frames are dropped.
        device: where to measure, if not where ``target`` runs.
        images: (count, height, width) in pixels of what is made, for the history; read off what
            the denoiser is given where it is not said.

    Attributes:
        peak_allocated, peak_reserved: highest bytes on the device; ``None`` on the CPU.
        peak_host: highest RSS of the process; on the CPU only, sampled.
        stages: stage -> :class:`StagePeak`, for the stages that ran.
        left_allocated, left_reserved: bytes on the device after the block and its release.
        seconds: wall time of the block.
        verified: for an optimizer, each stage's peak beside what was predicted of it.
        receipt: what the release on exit gave back.

    Raises:
        TargetError: ``target`` is none of these. DeviceError: no such device.
    """

    def __init__(
        self,
        target: Any = None,
        release_on_exit: bool = True,
        *,
        device: str | torch.device | None = None,
        images: tuple[int, int, int] | None = None,
    ) -> None:
        known = is_device(target) or is_optimizer(target) or is_pipeline(target)
        if target is not None and not known and not isinstance(target, torch.nn.Module):
            raise TargetError(
                f"can't monitor {type(target).__name__}; give a MemoryOptimizer, a pipeline, "
                "a torch module or a device"
            )
        self._target = target
        self._release_on_exit = release_on_exit
        self._images = images
        self.device = _device_for(target, device)
        self.peak_allocated: int | None = None
        self.peak_reserved: int | None = None
        self.peak_host: int | None = None
        self.left_allocated: int | None = None
        self.left_reserved: int | None = None
        self.stages: dict[str, StagePeak] = {}
        self.verified: list[Verified] = []
        self.seconds = 0.0
        self.receipt: Receipt | None = None
        self._window: PeakWindow | None = None
        self._hooks: StageHooks | None = None
        self._stage: _Stage | None = None
        self._started = 0.0

    def __enter__(self) -> MemoryMonitor:
        if self._window is not None:
            raise TargetError("this monitor is already running; make another one to nest them")
        pipeline = None if is_device(self._target) else pipeline_of(self._target)
        self.stages, self.verified, self.receipt = {}, [], None
        self._window = PeakWindow(self.device)
        self._started = time.perf_counter()
        if pipeline is not None:
            self._hooks = StageHooks(pipeline, self._enter_stage, self._leave_stage)
            self._hooks.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.remove()
        waited, failure = self._wait()
        self._close_stage(waited)
        self.seconds = time.perf_counter() - self._started
        if self._window is not None:
            self._take(self._window.close())
            self._window = None
        if hooks is not None:
            told = keep(
                self, self._target, error or failure, images=self._images, latents=hooks.latents
            )
            self.verified = told
            after = getattr(self._target, "after_run", None)
            if after is not None:
                after(told)
        if self._release_on_exit:
            held = () if self._target is None or is_device(self._target) else (self._target,)
            self.receipt = release(*held, device=self.device, error=error)
        self.left_allocated = backend.allocated(self.device)
        self.left_reserved = backend.reserved(self.device)
        if failure is not None and error is None:
            raise failure

    def get_peak_memory(self) -> float:
        """The peak in GB of 1024**3 bytes: allocated on the device; on the CPU the process's RSS.

        Inside the block it is the peak so far.

        Raises:
            LowtideError: the monitor was not used in a ``with`` block yet.
        """
        if self._window is not None:
            self._take(self._window.read())
        peak = self.peak_host if self.device.type == "cpu" else self.peak_allocated
        if peak is None:
            raise LowtideError("nothing was measured yet; use the monitor in a `with` block")
        return bytes_to_gb(peak)

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain JSON values; bytes and seconds."""
        return {
            "device": str(self.device),
            "peak_allocated": self.peak_allocated,
            "peak_reserved": self.peak_reserved,
            "peak_host": self.peak_host,
            "stages": {name: asdict(peak) for name, peak in self.stages.items()},
            "verified": [it.to_dict() for it in self.verified],
            "left_allocated": self.left_allocated,
            "left_reserved": self.left_reserved,
            "seconds": self.seconds,
            "receipt": None if self.receipt is None else self.receipt.to_dict(),
        }

    def text(self) -> str:
        """The figures for a person, a line each."""
        if self.device.type == "cpu":
            lines = [f"Peak on the CPU: {format_bytes(self.peak_host)} of RAM (process, sampled)"]
        else:
            lines = [
                f"Peak on {self.device}: {format_bytes(self.peak_allocated)} allocated, "
                f"{format_bytes(self.peak_reserved)} reserved"
            ]
        told = {it.stage: it for it in self.verified}
        for name, peak in self.stages.items():
            figure = peak.host if self.device.type == "cpu" else peak.allocated
            line = f"  {name.replace('_', ' ')}: {format_bytes(figure)}, {peak.seconds:.2f} s"
            lines.append(line + (told[name].beside() if name in told else ""))
        if self.device.type != "cpu":
            lines.append(
                f"  left: {format_bytes(self.left_allocated)} allocated, "
                f"{format_bytes(self.left_reserved)} reserved"
            )
        return "\n".join(lines)

    def _take(self, peak: Peak) -> None:
        self.peak_allocated, self.peak_reserved = peak.allocated, peak.reserved
        self.peak_host = peak.host

    def _wait(self) -> tuple[float, RuntimeError | None]:
        """Let the device finish: the seconds that took, and what it reports to have failed."""
        started = time.perf_counter()
        failure = None
        try:
            backend.synchronize(self.device)
        except RuntimeError as error:
            failure = error
        return time.perf_counter() - started, failure

    def _enter_stage(self, name: str) -> None:
        if self._stage is None or self._stage.name != name:
            backend.synchronize(self.device)
            self._close_stage(None)
            self._stage = _Stage(name, self.device)
        self._stage.depth += 1

    def _leave_stage(self, name: str) -> None:
        stage = self._stage
        if stage is not None and stage.name == name:
            stage.depth -= 1
            stage.mark()

    def _close_stage(self, waited: float | None) -> None:
        """Book the running stage. ``waited`` = None: its end is now, the next one's start."""
        stage, self._stage = self._stage, None
        if stage is None:
            return
        seconds, peak = stage.close(waited)
        old = self.stages.get(stage.name)
        if old is not None:
            peak = peak.joined(Peak(old.allocated, old.reserved, old.host))
            seconds += old.seconds
        self.stages[stage.name] = StagePeak(peak.allocated, peak.reserved, seconds, peak.host)


class _Stage:
    """A run of forwards of one stage, from the first one's beginning to the last one's end."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.depth = 0
        self._window = PeakWindow(device)
        self._started = self._ended = time.perf_counter()
        self._peak = Peak()

    def mark(self) -> None:
        """A forward has ended: what comes next may belong to no stage."""
        if self.depth == 0:
            self._peak = self._window.read()
            self._ended = time.perf_counter()

    def close(self, waited: float | None) -> tuple[float, Peak]:
        """(seconds, peak). A forward still running, which only an error leaves, counts to now."""
        if self.depth > 0:
            self.depth = 0
            self.mark()
        self._window.close()
        ended = time.perf_counter() if waited is None else self._ended + waited
        return ended - self._started, self._peak


def _device_for(target: Any, device: str | torch.device | None) -> torch.device:
    if device is not None:
        return backend.device_of(device)
    if is_device(target):
        return backend.device_of(target)
    if is_optimizer(target) and getattr(target, "device", None) is not None:
        return backend.device_of(target.device)
    # A pipeline on the CPU may be moved inside the block: then the accelerator is what counts.
    running = getattr(target, "_execution_device", None)
    if isinstance(running, torch.device) and running.type not in ("cpu", "meta"):
        return backend.device_of(running)
    return backend.device_of()

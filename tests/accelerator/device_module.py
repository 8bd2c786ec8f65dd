"""What ``torch.npu`` and the patched ``torch.cuda`` share: memory, streams, events, seeds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

# A device without fp8 matrix kernels: programs then cast fp8 weights to the compute dtype, which is
# what can be simulated. bfloat16 is available.
CAPABILITY = (8, 6)

FOLDED: dict[int, tuple[int, int]] = {}
"""Device -> highest peaks (allocated, reserved) a program has reset since the handle last did."""


_OVERSIZE = {
    f"oversize_{what}.{which}": 0
    for what in ("allocations", "segments")
    for which in ("current", "peak", "allocated", "freed")
}
"""None is oversize where no limit of splitting is set; ``torch.cuda.memory_summary`` reads it."""


def peaks_of(core: ModuleType, index: int) -> tuple[int, int]:
    """Peaks allocated and reserved since the handle's last reset, a program's resets or not."""
    stats = core.stats(index)
    allocated, reserved = FOLDED.get(index, (0, 0))
    return (
        max(allocated, stats["allocated_bytes.all.peak"]),
        max(reserved, stats["reserved_bytes.all.peak"]),
    )


def functions(core: ModuleType, kind: str, name: str) -> dict[str, Any]:
    """The names of a torch device module of type ``kind``, over the compiled core."""

    def index_of(device: Any = None) -> int:
        if device is None:
            return core.current_device()
        if isinstance(device, int):
            return core.current_device() if device < 0 else device
        index = torch.device(device).index
        return core.current_device() if index is None else index

    def stat(key: str) -> Callable[..., int]:
        return lambda device=None: core.stats(index_of(device))[key]

    def reset_peaks(device: Any = None) -> None:
        # A program's own measuring must not hide from the handle what it allocated before.
        index = index_of(device)
        FOLDED[index] = peaks_of(core, index)
        core.reset_peaks(index)

    class Properties:
        """What ComfyUI and diffusers read of a device's properties."""

        major, minor = CAPABILITY
        multi_processor_count = 1
        gcnArchName = ""
        uuid = "0"
        has_fp16 = True

        def __init__(self, index: int) -> None:
            self.name = name
            self.total_memory = core.mem_info(index)[1]

    class device:
        """Makes a device current for the length of a block."""

        def __init__(self, device: Any) -> None:
            self.index = index_of(device)

        def __enter__(self) -> None:
            self.before = core.current_device()
            core.set_device(self.index)

        def __exit__(self, *exc: object) -> None:
            core.set_device(self.before)

    class device_of(device):
        """The device of a tensor; of a CPU tensor: no change."""

        def __init__(self, tensor: torch.Tensor) -> None:
            super().__init__(tensor.device if tensor.device.type == kind else None)

    def default_generator(device: Any = None) -> torch.Generator:
        return core.default_generator(index_of(device))

    def manual_seed_all(seed: int) -> None:
        for index in range(core.device_count()):
            core.default_generator(index).manual_seed(int(seed))

    def seed_all() -> None:
        manual_seed_all(default_generator().seed())

    table: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "device_count": core.device_count,
        "current_device": core.current_device,
        "set_device": lambda device: core.set_device(index_of(device)),
        "device": device,
        "device_of": device_of,
        "get_device_name": lambda device=None: name,
        "get_device_properties": lambda device=None: Properties(index_of(device)),
        "get_device_capability": lambda device=None: CAPABILITY,
        "is_bf16_supported": lambda *args, **kwargs: True,
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16, torch.float32],
        "utilization": lambda device=None: 0,
        "ipc_collect": lambda: None,
        "is_current_stream_capturing": lambda: False,
        "mem_get_info": lambda device=None: core.mem_info(index_of(device)),
        "memory_stats": lambda device=None: {**_OVERSIZE, **core.stats(index_of(device))},
        "memory_allocated": stat("allocated_bytes.all.current"),
        "max_memory_allocated": stat("allocated_bytes.all.peak"),
        "memory_reserved": stat("reserved_bytes.all.current"),
        "max_memory_reserved": stat("reserved_bytes.all.peak"),
        "reset_peak_memory_stats": reset_peaks,
        "reset_max_memory_allocated": reset_peaks,
        "reset_accumulated_memory_stats": lambda device=None: core.reset_accumulated(
            index_of(device)
        ),
        "empty_cache": core.empty_cache,
        "synchronize": lambda device=None: core.synchronize(index_of(device)),
        "OutOfMemoryError": torch.OutOfMemoryError,
        "manual_seed": lambda seed: default_generator().manual_seed(int(seed)),
        "manual_seed_all": manual_seed_all,
        "seed": lambda: default_generator().seed(),
        "seed_all": seed_all,
        "initial_seed": lambda: default_generator().initial_seed(),
        "get_rng_state": lambda device=None: default_generator(device).get_state(),
        "get_rng_state_all": lambda: [
            core.default_generator(index).get_state() for index in range(core.device_count())
        ],
        "set_rng_state": lambda state, device=None: default_generator(device).set_state(state),
        "set_rng_state_all": lambda states: [
            core.default_generator(index).set_state(state) for index, state in enumerate(states)
        ],
    }
    table.update(_streams(core, kind, index_of))
    return table


def _streams(core: ModuleType, kind: str, index_of: Callable[[Any], int]) -> dict[str, Any]:
    """Streams and events. Copies and kernels are synchronous here: a stream only names memory."""

    class Stream(torch.Stream):
        def __new__(cls, device: Any = None, priority: int = 0, **kwargs: Any) -> Stream:
            if "stream_id" in kwargs:
                kwargs.pop("stream_ptr", None)
                return super().__new__(cls, **kwargs)
            return super().__new__(cls, torch.device(kind, index_of(device)), priority=priority)

        @property
        def cuda_stream(self) -> int:
            return self.stream_id

        def __enter__(self) -> Stream:
            self._before = current_stream(self.device)
            set_stream(self)
            return self

        def __exit__(self, *exc: object) -> None:
            set_stream(self._before)

    class Event(torch.Event):
        def __new__(
            cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
        ) -> Event:
            device = torch.device(kind, core.current_device())
            return super().__new__(cls, device, enable_timing=enable_timing)

    def stream_of(index: int, stream_id: int) -> Stream:
        number = {"cuda": 1, "npu": 20}[kind]  # c10::DeviceType
        return Stream(stream_id=stream_id, device_index=index, device_type=number)

    def current_stream(device: Any = None) -> Stream:
        index = index_of(device)
        return stream_of(index, core.current_stream_id(index))

    def set_stream(stream: torch.Stream | None) -> None:
        if stream is not None:
            core.set_stream(stream.device_index, stream.stream_id)

    @contextlib.contextmanager
    def stream(stream: torch.Stream | None) -> Iterator[None]:
        if stream is None:
            yield
            return
        before_device, before = core.current_device(), current_stream(stream.device)
        core.set_device(stream.device_index)
        set_stream(stream)
        try:
            yield
        finally:
            set_stream(before)
            core.set_device(before_device)

    return {
        "Stream": Stream,
        "Event": Event,
        "current_stream": current_stream,
        "default_stream": lambda device=None: stream_of(index_of(device), 0),
        "set_stream": set_stream,
        "stream": stream,
        "StreamContext": stream,
    }

"""Measuring a device: what is found, and that nobody waits longer than the deadline."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from lowtide.memory import backend, profile_probe
from lowtide.memory.profile_measure import measure
from lowtide.memory.profile_probe import DeviceProbe
from lowtide.memory.profile_published import assumed

START = assumed("NVIDIA GeForce RTX 3060")
GIGA, MIB = 1e9, 1 << 20


class Fake:
    """A device of known rates, whose calls take no time."""

    def __init__(self, launch: float = 1e-4, **rates: float) -> None:
        self.rates = {"pinned": 20 * GIGA, "pageable": 8 * GIGA, "on": 150 * GIGA, **rates}
        self.launch = launch
        self.closed = threading.Event()
        self.sizes: list[int] = []

    def copy_in(self, size: int, pinned: bool) -> float:
        self.sizes.append(size)
        return self.launch + size / self.rates["pinned" if pinned else "pageable"]

    def copy_on(self, size: int) -> float:
        return self.launch + size / self.rates["on"]

    def multiply(self, edge: int) -> float:
        return self.launch + 2 * edge**3 / 20e12

    def workspace(self, channels: int, edge: int) -> float:
        return channels / 1000

    def context(self) -> int | None:
        return 400 * MIB

    def most_bytes(self) -> int:
        return 1 << 40

    def close(self) -> None:
        self.closed.set()


def test_rates_are_those_of_long_work() -> None:
    fake = Fake()
    found = measure(START, lambda: fake)
    assert found.measured and "measured on this machine" in found.source
    assert found.name == START.name
    for value, rate in (
        (found.h2d_pinned, 20 * GIGA), (found.h2d_pageable, 8 * GIGA),
        (found.bandwidth, 300 * GIGA), (found.flops, 20e12),
    ):  # fmt: skip
        assert 0.9 * rate < value <= rate
    assert (found.context_bytes, found.workspace_factor) == (400 * MIB, 0.64)
    assert fake.closed.is_set()
    assert max(fake.sizes) == 256 * MIB, "no larger than it must be"


def test_a_slow_device_is_done_with_small_work() -> None:
    fake = Fake(pinned=10 * MIB, pageable=10 * MIB)
    found = measure(START, lambda: fake)
    assert max(fake.sizes) == MIB and found.h2d_pinned == pytest.approx(10 * MIB, rel=0.01)


def test_buffers_stay_within_what_is_free() -> None:
    fake = Fake()
    fake.most_bytes = lambda: 4 * MIB  # type: ignore[method-assign]
    edges: list[int] = []
    multiply = fake.multiply
    fake.multiply = lambda edge: edges.append(edge) or multiply(edge)  # type: ignore
    assert measure(START, lambda: fake).measured
    assert max(fake.sizes) == 4 * MIB and 2 * max(edges) ** 2 <= 4 * MIB


@pytest.mark.parametrize("stuck", ["copy_in", "copy_on", "multiply", "workspace", "context"])
def test_the_deadline_holds_for_a_device_that_hangs(stuck: str) -> None:
    release = threading.Event()
    fake = Fake()
    setattr(fake, stuck, lambda *_: release.wait(20))
    started = time.perf_counter()
    found = measure(START, lambda: fake, seconds=0.2)
    took = time.perf_counter() - started
    release.set()
    assert took < 0.5 and not found.measured
    assert "the 0.2 s for it were over" in found.source and START.source in found.source
    assert found.flops == START.flops or stuck == "workspace"
    assert fake.closed.wait(5), "what was begun is given back once it ends"


def test_the_deadline_holds_for_a_device_that_is_slow_in_everything() -> None:
    class Slow(Fake):
        def _wait(self) -> float:
            time.sleep(0.05)
            return 1e-6  # never long enough: sizes go on growing

        def copy_in(self, size: int, pinned: bool) -> float:
            return self._wait()

    started = time.perf_counter()
    found = measure(START, Slow, seconds=0.3)
    assert time.perf_counter() - started < 0.5
    assert not found.measured and found.bandwidth == START.bandwidth


@pytest.mark.parametrize("at", ["copy_in", "copy_on", "multiply", "workspace"])
def test_it_stops_before_the_next_piece_of_work_where_it_is_halted(at: str) -> None:
    fake, halted, after = Fake(), threading.Event(), []
    for name in ("copy_in", "copy_on", "multiply", "workspace"):
        real = getattr(fake, name)

        def piece(*given: Any, name: str = name, real: Any = real) -> float:
            if halted.is_set():
                after.append(name)
            if name == at:
                halted.set()
            return real(*given)

        setattr(fake, name, piece)
    found = measure(START, lambda: fake, seconds=5, halted=halted.is_set)
    assert halted.is_set() and fake.closed.is_set() and not found.measured
    assert after == []


def test_no_convolution_takes_longer_than_one_piece_of_work_may() -> None:
    fake, sizes = Fake(), []
    fake.multiply = lambda edge: 2 * edge**3 / 1e9  # type: ignore  # a GFLOP/s
    fake.workspace = lambda channels, edge: sizes.append((channels, edge)) or 0.0  # type: ignore
    assert measure(START, lambda: fake, longest=0.05).measured
    assert all(18 * (channels * edge) ** 2 / 1e9 <= 0.05 or edge == 8 for channels, edge in sizes)
    assert len(sizes) == 3


def test_nobody_waits_for_a_device_that_cannot_even_be_opened() -> None:
    release = threading.Event()

    def never() -> Any:
        release.wait(20)
        raise RuntimeError

    started = time.perf_counter()
    assert not measure(START, never, seconds=0.1).measured
    assert time.perf_counter() - started < 0.4
    release.set()


def test_what_was_found_before_a_failure_counts() -> None:
    fake = Fake()

    def full(edge: int) -> float:
        raise torch.OutOfMemoryError("out of memory")

    fake.multiply = full  # type: ignore[method-assign]
    found = measure(START, lambda: fake)
    assert not found.measured and found.flops == START.flops
    assert 0.9 * 300 * GIGA < found.bandwidth <= 300 * GIGA
    assert "flops, workspace_factor not measured: OutOfMemoryError: out of memory" in found.source
    assert fake.closed.is_set()


def test_a_real_device_is_measured_and_left_as_it_was(accelerator: Any) -> None:
    device = backend.device_of(accelerator.device)
    torch.empty(1, device=device)
    accelerator.empty_cache()
    before = (accelerator.allocated, accelerator.counters()["pinned"])
    accelerator.reset_counters()
    found = measure(START, lambda: DeviceProbe(device), seconds=20)
    counters = accelerator.counters()
    assert found.measured, found.source
    assert counters["h2d_pinned"] > 0 and counters["h2d"] > counters["h2d_pinned"]
    accelerator.empty_cache()
    assert (accelerator.allocated, accelerator.counters()["pinned"]) == before
    for rate in (found.h2d_pinned, found.h2d_pageable, found.bandwidth, found.flops):
        assert rate != START.flops and rate > 1e6
    assert 0 <= found.workspace_factor < 10


def test_a_small_device_is_not_filled(accelerator: Any) -> None:
    accelerator(capacity="96M")
    device = backend.device_of(accelerator.device)
    accelerator.reset_peaks()
    base = accelerator.allocated
    probe = DeviceProbe(device)
    assert probe.most_bytes() <= 6 * MIB
    probe.copy_on(probe.most_bytes())
    probe.close()
    assert accelerator.peak_allocated - base <= 2 * 6 * MIB


def test_scratch_memory_is_what_a_convolution_takes_beside_its_tensors(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = backend.device_of(accelerator.device)
    probe = DeviceProbe(device)
    plain = torch.nn.functional.conv2d
    half = 2 * (8 * 16 * 16 + 8 * 8 * 9 + 8 * 16 * 16)

    def with_scratch(x: Any, weight: Any, **more: Any) -> Any:
        scratch = torch.empty(3 * half, dtype=torch.uint8, device=device)
        y = plain(x, weight, **more)
        del scratch
        return y

    without = probe.workspace(8, 16)
    monkeypatch.setattr(profile_probe.torch.nn.functional, "conv2d", with_scratch)
    assert 2.5 < probe.workspace(8, 16) - without < 3.5

"""One API over the backends: readings, peaks, and the devices that exist."""

import types

import pytest
import torch
from lowtide.memory import backend
from lowtide.memory.errors import DeviceError
from lowtide.memory.units import MIB

CPU = torch.device("cpu", 0)


def test_readings_follow_the_tensors(accelerator):
    device = accelerator.device
    base = backend.allocated(device)
    tensor = torch.zeros(3 * MIB, dtype=torch.uint8, device=device)
    assert backend.allocated(device) == base + 3 * MIB == accelerator.allocated
    assert backend.reserved(device) == accelerator.reserved >= 3 * MIB
    assert backend.mem_get_info(device) == (accelerator.free, accelerator.capacity)
    del tensor
    assert backend.allocated(device) == base
    backend.empty_cache(device)
    assert backend.reserved(device) == accelerator.reserved == base


def test_peaks_stay_until_they_are_reset(accelerator):
    device = accelerator.device
    torch.zeros(5 * MIB, dtype=torch.uint8, device=device)
    assert backend.peak_allocated(device) == accelerator.allocated + 5 * MIB
    assert backend.peak_reserved(device) >= backend.peak_allocated(device)
    backend.empty_cache(device)
    backend.reset_peaks(device)
    assert backend.peak_allocated(device) == accelerator.allocated
    assert backend.peak_reserved(device) == accelerator.reserved


def test_synchronize_reaches_the_device(accelerator):
    accelerator.reset_counters()
    backend.synchronize(accelerator.device)
    assert accelerator.counters()["syncs"] == 1


def test_the_best_device_is_the_accelerator_with_its_index(accelerator):
    assert backend.device_of() == accelerator.device
    assert backend.device_of(accelerator.device.type).index == 0
    assert backend.supports_streams(accelerator.device)
    assert backend.records_peaks(accelerator.device)


def test_the_current_device_fills_a_missing_index(accelerator):
    accelerator(devices=2)
    kind = accelerator.device.type
    module = accelerator.module
    module.set_device(1)
    try:
        assert backend.device_of(kind) == torch.device(kind, 1)
    finally:
        module.set_device(0)


def test_each_device_has_its_own_readings(accelerator):
    accelerator(devices=2)
    second = torch.device(accelerator.device.type, 1)
    base = backend.allocated(accelerator.device)
    tensor = torch.zeros(MIB, dtype=torch.uint8, device=second)
    assert backend.allocated(second) == MIB
    assert backend.allocated(accelerator.device) == base
    del tensor
    backend.empty_cache(second)


def test_a_device_that_does_not_exist_is_named_with_those_that_do(accelerator):
    kind = accelerator.device.type
    with pytest.raises(DeviceError, match=f"no {kind}:7 here: 1 {kind} device"):
        backend.device_of(f"{kind}:7")
    with pytest.raises(DeviceError, match=f"no 'xpu' device here; usable: {kind}, cpu"):
        backend.device_of("xpu")
    with pytest.raises(DeviceError, match="no 'meta' device"):
        backend.device_of("meta")
    with pytest.raises(DeviceError, match="'gpu' names no device"):
        backend.device_of("gpu")


def test_the_cpu_has_no_allocator_to_ask():
    assert backend.device_of("cpu") == CPU
    for reading in ("allocated", "reserved", "peak_allocated", "peak_reserved", "mem_get_info"):
        assert getattr(backend, reading)(CPU) is None
    assert not backend.supports_streams(CPU)
    assert not backend.records_peaks(CPU)
    for call in (backend.reset_peaks, backend.empty_cache, backend.synchronize):
        call(CPU)


def test_a_machine_without_accelerator_falls_to_the_cpu(monkeypatch):
    monkeypatch.setattr(backend, "_is_available", lambda kind: False)
    assert backend.device_of() == CPU
    with pytest.raises(DeviceError, match="usable: cpu"):
        backend.device_of("cuda")


def test_metal_reads_its_own_counters(monkeypatch):
    metal = types.SimpleNamespace(
        current_allocated_memory=lambda: 10,
        driver_allocated_memory=lambda: 30,
        synchronize=lambda: calls.append("synchronize"),
        empty_cache=lambda: calls.append("empty"),
        is_available=lambda: True,
    )
    calls = []
    monkeypatch.setattr(torch, "mps", metal)
    device = torch.device("mps", 0)
    assert (backend.allocated(device), backend.reserved(device)) == (10, 30)
    assert backend.peak_allocated(device) is None
    assert backend.mem_get_info(device) is None
    assert not backend.records_peaks(device)
    backend.synchronize(device)
    backend.empty_cache(device)
    assert calls == ["synchronize", "empty"]


def test_a_driver_that_does_not_know_what_is_free_gives_none(monkeypatch):
    def refuse(device):
        raise RuntimeError("querying available free memory is not supported")

    monkeypatch.setattr(torch, "xpu", types.SimpleNamespace(mem_get_info=refuse))
    assert backend.mem_get_info(torch.device("xpu", 0)) is None


def test_an_unused_device_is_not_woken(monkeypatch):
    woken = []
    asleep = types.SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: False,
        device_count=lambda: 1,
        current_device=lambda: woken.append("current_device"),
        synchronize=lambda device: woken.append("synchronize"),
        empty_cache=lambda: woken.append("empty_cache"),
        reset_peak_memory_stats=lambda device: woken.append("reset"),
    )
    monkeypatch.setattr(torch, "xpu", asleep)
    device = backend.device_of("xpu")
    assert device == torch.device("xpu", 0)
    for call in (backend.reset_peaks, backend.empty_cache, backend.synchronize):
        call(device)
    assert woken == []


def test_a_torch_without_the_backend_says_what_to_install():
    with pytest.raises(DeviceError, match="install the build"):
        backend.module_of(torch.device("ipu"))


def test_the_pinned_cache_is_emptied_only_where_torch_has_one(accelerator, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: emptied.append(True))
    has_one = accelerator.device.type in ("cuda", "xpu")
    assert backend.empty_host_cache(accelerator.device) is has_one
    assert backend.empty_host_cache(CPU) is False
    assert emptied == [True] * has_one


def test_workspaces_of_the_matrix_library_go_on_cuda_only(monkeypatch):
    dropped = []
    monkeypatch.setattr(backend, "is_initialized", lambda device: True)
    monkeypatch.setattr(
        torch._C, "_cuda_clearCublasWorkspaces", lambda: dropped.append(1), raising=False
    )
    assert backend.drop_workspaces(torch.device("cuda", 0)) and dropped == [1]
    assert not backend.drop_workspaces(torch.device("xpu", 0)) and dropped == [1]
    monkeypatch.setattr(backend, "is_initialized", lambda device: False)
    assert not backend.drop_workspaces(torch.device("cuda", 0)) and dropped == [1]

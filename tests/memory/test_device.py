"""The probe: NVML or torch, discrete or unified, known or None."""

import sys
import types

import pytest
import torch
from lowtide.memory import backend, device, nvml
from lowtide.memory.errors import DeviceError
from lowtide.memory.host import HostSnapshot
from lowtide.memory.units import GIB, MIB

HOST = HostSnapshot(16 * GIB, 10 * GIB, GIB, 0, 0)
UUID = "11111111-2222-3333-4444-555555555555"


class NVMLError(Exception):
    pass


class FakeNvml(types.ModuleType):
    """NVML with two cards: the one CUDA calls 0 is NVML's second."""

    def __init__(self, known, counted=2):
        super().__init__("pynvml")
        self.NVMLError = NVMLError
        self.known = known
        self.counted = counted
        self.open = 0

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return self.counted

    def _find(self, key):
        if key not in self.known:
            raise NVMLError("not found")
        return key

    nvmlDeviceGetHandleByUUID = nvmlDeviceGetHandleByPciBusId = nvmlDeviceGetHandleByIndex = _find

    def nvmlDeviceGetMemoryInfo(self, handle):
        total, free = self.known[handle]
        return types.SimpleNamespace(total=total, free=free, used=total - free)


@pytest.fixture
def card(monkeypatch):
    """A CUDA card as torch shows it; returns a function that sets properties and NVML."""

    def make(library=None, kind="cuda", **properties):
        values = {"name": "Test Card", "total_memory": 8 * GIB, **properties}
        module = types.SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            device_count=lambda: 1,
            current_device=lambda: 0,
            get_device_properties=lambda d: types.SimpleNamespace(**values),
            memory_allocated=lambda d: GIB,
            memory_reserved=lambda d: 2 * GIB,
            mem_get_info=lambda d: (4 * GIB, 8 * GIB),
        )
        for other in backend.ACCELERATORS:
            if other not in (kind, "mps"):
                away = types.SimpleNamespace(is_available=lambda: False)
                monkeypatch.setattr(torch, other, away, raising=False)
        monkeypatch.setattr(torch, kind, module, raising=False)
        monkeypatch.setitem(sys.modules, "pynvml", library)
        monkeypatch.setattr(device, "host_snapshot", lambda: HOST)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return module

    return make


# -- the simulated accelerator -----------------------------------------------------------------


def test_a_snapshot_counts_what_is_there(accelerator):
    accelerator(capacity="6G", overhead=300 * MIB)
    tensor = torch.zeros(5 * MIB, dtype=torch.uint8, device=accelerator.device)
    found = device.snapshot()
    assert found.device == str(accelerator.device)
    assert found.kind == accelerator.flavour
    assert found.total == 6 * GIB
    assert found.free == accelerator.free
    assert found.allocated == accelerator.allocated >= 5 * MIB
    assert found.reserved == accelerator.reserved
    assert found.reserved_by_others == 300 * MIB
    assert found.to_dict()["name"].startswith("Simulated")
    del tensor


def test_a_device_that_is_not_there_is_refused(accelerator):
    with pytest.raises(DeviceError, match="no 'xpu' device here"):
        device.snapshot("xpu")


# -- NVML --------------------------------------------------------------------------------------


def test_nvml_answers_by_uuid_not_by_index(card):
    library = FakeNvml({0: (24 * GIB, GIB), f"GPU-{UUID}": (8 * GIB, 3 * GIB)})
    card(library, uuid=UUID)
    found = device.snapshot()
    assert (found.kind, found.name) == ("cuda", "Test Card")
    assert (found.total, found.free) == (8 * GIB, 3 * GIB)
    assert (found.allocated, found.reserved) == (GIB, 2 * GIB)
    assert found.reserved_by_others == 3 * GIB
    assert library.open == 0


def test_nvml_answers_by_pci_address(card):
    library = FakeNvml({"00000000:41:00.0": (8 * GIB, 5 * GIB)})
    card(library, pci_domain_id=0, pci_bus_id=0x41, pci_device_id=0)
    assert device.snapshot().free == 5 * GIB


def test_a_slice_of_a_card_is_found_by_its_own_uuid(card):
    card(FakeNvml({f"MIG-{UUID}": (8 * GIB, 6 * GIB)}), uuid=UUID)
    assert device.snapshot().free == 6 * GIB


def test_the_whole_card_does_not_answer_for_a_slice(card):
    card(FakeNvml({f"GPU-{UUID}": (80 * GIB, 70 * GIB)}), uuid=UUID)
    found = device.snapshot()
    assert (found.total, found.free) == (8 * GIB, 4 * GIB)  # torch's


def test_an_older_torch_finds_the_card_by_the_visible_uuid(card, monkeypatch):
    card(FakeNvml({"GPU-abc": (8 * GIB, 7 * GIB)}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-abc")
    assert device.snapshot().free == 7 * GIB


def test_among_several_cards_none_is_guessed(card):
    card(FakeNvml({0: (8 * GIB, 7 * GIB), 1: (8 * GIB, GIB)}))
    assert device.snapshot().free == 4 * GIB  # torch's


def test_the_only_card_needs_no_name(card):
    card(FakeNvml({0: (8 * GIB, 7 * GIB)}, counted=1))
    assert device.snapshot().free == 7 * GIB


def test_without_nvml_torch_answers(card, monkeypatch):
    library = FakeNvml({f"GPU-{UUID}": (8 * GIB, 7 * GIB)})
    card(library, uuid=UUID)

    def missing():
        raise NVMLError("library not found")

    library.nvmlInit = missing
    assert device.snapshot().free == 4 * GIB
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert device.snapshot().free == 4 * GIB


def test_nvml_that_knows_no_memory_leaves_it_to_torch(card):
    library = FakeNvml({f"GPU-{UUID}": (8 * GIB, 7 * GIB)})
    card(library, uuid=UUID)

    def unsupported(handle):
        raise NVMLError("not supported")

    library.nvmlDeviceGetMemoryInfo = unsupported
    assert device.snapshot().free == 4 * GIB
    assert library.open == 0


def test_rocm_is_not_asked_through_nvml(card, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    card(FakeNvml({f"GPU-{UUID}": (8 * GIB, 7 * GIB)}), uuid=UUID)
    found = device.snapshot()
    assert (found.kind, found.free) == ("rocm", 4 * GIB)


# -- other devices -----------------------------------------------------------------------------


def test_an_integrated_gpu_gets_its_share_of_the_ram(card):
    card(is_integrated=1, total_memory=16 * GIB)
    found = device.snapshot()
    assert found.unified is True
    assert found.total == 8 * GIB  # the driver's, below three quarters of 16 GB
    assert found.free == 6 * GIB  # total less what is reserved here
    assert found.reserved_by_others is None


def test_the_share_is_capped_by_the_ram_that_is_left(card, monkeypatch):
    module = card(is_integrated=1)
    module.mem_get_info = lambda d: (14 * GIB, 16 * GIB)
    monkeypatch.setattr(device, "host_snapshot", lambda: HostSnapshot(16 * GIB, GIB, 0, 0, 0))
    found = device.snapshot()
    assert (found.total, found.free) == (12 * GIB, GIB)


def test_a_discrete_card_is_not_unified(card):
    card(is_integrated=0)
    assert device.snapshot().unified is False


def test_a_driver_that_does_not_say_leaves_none(card):
    module = card(kind="xpu")
    del module.mem_get_info
    found = device.snapshot()
    assert (found.kind, found.total, found.free) == ("xpu", 8 * GIB, None)
    assert found.reserved_by_others is None
    assert found.unified is None
    module.get_device_properties = lambda d: types.SimpleNamespace(name="X")
    assert device.snapshot().total is None


def test_a_late_reading_is_no_negative_amount(card):
    module = card()
    module.mem_get_info = lambda d: (7 * GIB, 8 * GIB)
    assert device.snapshot().reserved_by_others == 0


def test_metal_is_unified_and_bounded_by_what_it_recommends(monkeypatch):
    metal = types.SimpleNamespace(
        device_count=lambda: 1,
        current_allocated_memory=lambda: GIB,
        driver_allocated_memory=lambda: 2 * GIB,
        recommended_max_memory=lambda: 11 * GIB,
    )
    monkeypatch.setattr(backend, "_is_available", lambda kind: kind == "mps")
    monkeypatch.setattr(torch, "mps", metal)
    monkeypatch.setattr(device, "host_snapshot", lambda: HOST)
    found = device.snapshot()
    assert (found.device, found.kind, found.unified) == ("mps:0", "mps", True)
    assert (found.total, found.free) == (11 * GIB, 9 * GIB)
    assert (found.allocated, found.reserved) == (GIB, 2 * GIB)
    del metal.recommended_max_memory
    assert device.snapshot().total == 12 * GIB


def test_the_cpu_counts_the_hosts_ram(monkeypatch):
    monkeypatch.setattr(device, "host_snapshot", lambda: HOST)
    found = device.snapshot("cpu")
    assert (found.device, found.kind) == ("cpu", "cpu")
    assert (found.total, found.free) == (16 * GIB, 10 * GIB)
    assert found.allocated is found.reserved is found.reserved_by_others is None


def test_nvml_reads_nothing_for_a_card_without_a_name(card):
    card(FakeNvml({}, counted=0))
    assert nvml.read(types.SimpleNamespace()) is None


def test_bytes_outside_torch_are_this_process_s_own():
    known = device.DeviceSnapshot("cuda:0", "cuda", "Card", 8 * GIB, GIB, 10, 20, 7 * GIB, False)
    counted = known.counting(2 * GIB)
    assert (counted.allocated, counted.reserved) == (10 + 2 * GIB, 20 + 2 * GIB)
    assert counted.reserved_by_others == 5 * GIB
    assert (counted.free, counted.total) == (GIB, 8 * GIB)
    assert known.counting(9 * GIB).reserved_by_others == 0
    unknown = device.DeviceSnapshot("cpu", "cpu", "CPU", 8, 4, None, None, None, True)
    assert unknown.counting(2) == unknown


def test_an_apple_chip_is_called_by_its_name(monkeypatch) -> None:
    device._chip.cache_clear()
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> types.SimpleNamespace:
        asked.append(command)
        return types.SimpleNamespace(stdout="Apple M2 Max\n")

    monkeypatch.setattr(device.subprocess, "run", run)
    assert device._chip() == device._chip() == "Apple M2 Max"
    assert asked == [["sysctl", "-n", "machdep.cpu.brand_string"]]
    device._chip.cache_clear()

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(device.subprocess, "run", missing)
    assert device._chip() and "\n" not in device._chip()
    device._chip.cache_clear()

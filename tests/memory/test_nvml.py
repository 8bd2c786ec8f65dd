"""NVML's reading is taken for the card it belongs to, and for no other."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from lowtide.memory import nvml
from lowtide.memory.nvml import NvmlMemory
from lowtide.memory.units import GIB

UUID = "12345678-9abc-def0-1234-56789abcdef0"


class NVMLError(Exception):
    """What every failed call raises."""


class Library(ModuleType):
    """pynvml with two cards; handles are (uuid, address), calls are remembered."""

    NVMLError = NVMLError

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.cards = {
            f"GPU-{UUID}": ("00000000:65:00.0", 8 * GIB, 5 * GIB),
            "GPU-other": ("00000000:17:00.0", 24 * GIB, 20 * GIB),
        }
        self.open = 0
        self.fails: set[str] = set()
        self.asked: list[str] = []

    def _call(self, name: str) -> None:
        self.asked.append(name)
        if name in self.fails:
            raise NVMLError(name)

    def nvmlInit(self) -> None:
        self._call("init")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self._call("uuid")
        if uuid not in self.cards:
            raise NVMLError(uuid)
        return uuid

    def nvmlDeviceGetHandleByPciBusId(self, address: str) -> str:
        self._call("pci")
        for uuid, card in self.cards.items():
            if card[0] == address:
                return uuid
        raise NVMLError(address)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self._call("index")
        return list(self.cards)[index]

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        self._call("memory")
        _, total, free = self.cards[handle]
        return SimpleNamespace(total=total, free=free)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        self._call("processes")
        return [
            SimpleNamespace(pid=7, usedGpuMemory=3 * GIB),
            SimpleNamespace(pid=8, usedGpuMemory=None),
        ]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    monkeypatch.setitem(sys.modules, "pynvml", found)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return found


def card(**facts: Any) -> SimpleNamespace:
    return SimpleNamespace(**facts)


FIRST, SECOND = NvmlMemory(8 * GIB, 5 * GIB), NvmlMemory(24 * GIB, 20 * GIB)


@pytest.mark.parametrize("uuid", [UUID, f"GPU-{UUID}"])
def test_a_card_is_found_by_its_uuid(library: Library, uuid: str) -> None:
    assert nvml.read(card(uuid=uuid, total_memory=8 * GIB)) == FIRST


def test_a_slice_of_a_card_is_found_by_its_own_name(library: Library) -> None:
    library.cards[f"MIG-{UUID}"] = ("none", 2 * GIB, GIB)
    del library.cards[f"GPU-{UUID}"]
    assert nvml.read(card(uuid=UUID)) == NvmlMemory(2 * GIB, GIB)
    assert nvml.read(card(uuid=f"MIG-{UUID}")) == NvmlMemory(2 * GIB, GIB)


def test_the_address_serves_where_the_uuid_is_not_known(library: Library) -> None:
    address = {"pci_domain_id": 0, "pci_bus_id": 0x17, "pci_device_id": 0}
    assert nvml.read(card(uuid="unheard-of", **address)) == SECOND
    assert nvml.read(card(**address)) == SECOND


def test_half_an_address_is_none(library: Library) -> None:
    assert nvml.read(card(pci_bus_id=0x17)) is None
    assert "pci" not in library.asked


def test_a_visible_device_named_by_uuid_decides(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    for visible, expected in (("GPU-other", SECOND), ("GPU-other,GPU-x", None), ("1", None)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert nvml.read(card()) == expected, visible


def test_the_only_card_needs_no_name_and_one_of_two_is_not_guessed(library: Library) -> None:
    assert nvml.read(card()) is None
    del library.cards["GPU-other"]
    assert nvml.read(card()) == FIRST


def test_a_total_far_from_torchs_belongs_to_something_else(library: Library) -> None:
    assert nvml.read(card(uuid=UUID, total_memory=4 * GIB)) is None
    assert nvml.read(card(uuid=UUID, total_memory=int(7.7 * GIB))) == FIRST


@pytest.mark.parametrize("call", ["init", "memory"])
def test_a_library_that_fails_knows_nothing(library: Library, call: str) -> None:
    library.fails.add(call)
    assert nvml.read(card(uuid=UUID)) is None


def test_an_address_nvml_does_not_know_reads_nothing(library: Library) -> None:
    assert nvml.read(card(pci_domain_id=0, pci_bus_id=1, pci_device_id=0)) is None


def test_what_a_process_holds_is_told_where_the_driver_knows(library: Library) -> None:
    assert nvml.process_bytes(card(uuid=UUID), 7) == 3 * GIB
    assert nvml.process_bytes(card(uuid=UUID), 8) is None, "Windows tells no figures"
    assert nvml.process_bytes(card(uuid=UUID), 9) is None, "a container has numbers of its own"
    library.fails.add("processes")
    assert nvml.process_bytes(card(uuid=UUID), 7) is None
    assert library.open == 0


def test_it_is_closed_as_often_as_it_was_opened(library: Library) -> None:
    nvml.read(card(uuid=UUID))
    nvml.read(card())
    library.fails.add("memory")
    nvml.read(card(uuid=UUID))
    assert library.open == 0 and library.asked.count("init") == 3


def test_without_the_package_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.read(card(uuid=UUID)) is None
